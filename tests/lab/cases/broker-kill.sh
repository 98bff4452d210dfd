# `xen-virtio serve` is killed and started again, under guests that verify their disks and write to
# their consoles; once the next one is another program, as in an upgrade. It goes on with all
# guests, which see neither an error nor an end.
# shellcheck shell=sh

dom0() {
    restart_daemon
    new_disk one 16 >/dev/null
    new_disk two 16 >/dev/null
    for name in one two; do
        guest "$name" loaded "/run/disks/$name"
        with_all_programs "$name"
        entries "$name" <<END
[[disk]]
vdev = "xvda"
END
        create "$name"
    done
    for name in one two; do
        expect "$name" obeying 60
        in_guest "$name" 'start_fio vda'
    done
    fio_writes bytes_written xvda
    for _ in 1 2 3; do
        kill_daemon
        start_daemon
        goes_on
    done

    # The new program comes to everything that runs, in the place of the old one.
    mkdir -p /run/next
    cp "$(command -v xen-virtio)" /run/next/xen-virtio
    former=$(worker_pids)
    stop_daemon
    usual_path=$PATH
    PATH=/run/next:$PATH
    start_daemon
    goes_on
    for pid in $(daemon_pid) $(worker_pids); do
        [ "$(readlink "/proc/$pid/exe")" = /run/next/xen-virtio ] || fail "process $pid is not of the new program"
    done

    for name in one two; do
        fio_ends_well "$name"
        in_guest "$name" 'dmesg' >"/lab/logs/dmesg-$name.log"
        ! grep -iE 'i/o error|blocked for more|stall|hung|virtio.*(fail|broken|error)|reset|watchdog' "/lab/logs/dmesg-$name.log" >/run/noticed ||
            fail "the kernel of $name noticed: $(cat /run/noticed)"
        [ "$(in_guest "$name" 'drop_caches; sum_of /dev/vda')" = "$(sum_of "/run/disks/$name")" ] ||
            fail "$name reads something else than the image holds"
    done

    # What the toolstack does while there is nobody is seen when there is somebody again.
    kill_daemon
    xl destroy one >/dev/null 2>&1 &
    destroying=$!
    sleep 1
    start_daemon
    check wait "$destroying"
    check destroy two
    wait_until 20 no_workers || fail "a worker outlives its guest"
    [ -z "$(ls /run/xen-virtio/workers)" ] || fail "left behind: $(ls /run/xen-virtio/workers)"
    PATH=$usual_path
    restart_daemon
}

kill_daemon() {
    killed=$(daemon_pid)
    former=$(worker_pids)
    check kill -KILL "$killed"
    wait_until 10 has_ended "$killed" || fail "the daemon is there still"
}

# All is served again, by other workers, and I/O goes on.
goes_on() {
    wait_until 30 all_serve || fail "not all is served again: $(xen-virtio list; tail -n 20 "$daemon_log")"
    for pid in $former; do
        [ ! -e "/proc/$pid" ] || fail "the worker of the former daemon, $pid, is there still"
    done
    xen-virtio list
    fio_writes bytes_written xvda
}

all_serve() { [ "$(xen-virtio list | grep -c ': serving')" -eq 2 ] && has_workers 2; }

guest_loaded() {
    need_disk vda
    guest_obey
}
