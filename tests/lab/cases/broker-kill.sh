# `xen-virtio serve` is killed or stopped and started again, and becomes another version and the
# former one again, under guests that verify their disks. It goes on with all guests, which see
# neither an error nor an end. What cannot take its place is refused. And where it ends at once
# with a worker, and nobody kept what was theirs, that guest runs on without its device.
# shellcheck shell=sh

# shellcheck disable=SC2034 # for tests/lab/run
needs_next_version=yes

next=/run/next/xen-virtio

dom0() {
    restart_daemon
    mkdir -p /run/next
    cp /lab/next/xen-virtio "$next"
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

    for end in kill_daemon kill_daemon kill_daemon stop_daemon; do
        former=$(worker_pids)
        $end
        start_daemon
        goes_on
    done
    refusals
    upgrade "$next" --binary "$next"
    upgrade "$(command -v xen-virtio)"

    for name in one two; do
        fio_ends_well "$name"
        noticed_nothing "$name"
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
    wait_until 20 has_workers 1 || fail "the worker of one outlives its guest"
    both_end_at_once
    check destroy two
    wait_until 20 no_workers || fail "a worker outlives its guest"
    [ -z "$(ls /run/xen-virtio/workers)" ] || fail "left behind: $(ls /run/xen-virtio/workers)"
}

kill_daemon() {
    killed=$(daemon_pid)
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

# upgrade PROGRAM [OPTION...]: by `xen-virtio upgrade` with these options, the daemon becomes that
# program. Its process stays the same, and the program comes to everything that runs.
upgrade() {
    program=$1 daemon=$(daemon_pid) former=$(worker_pids)
    shift
    xen-virtio upgrade "$@" >/run/said 2>&1 || fail "xen-virtio upgrade $*: $(cat /run/said)"
    cat /run/said
    [ "$(cat /run/said)" = "$("$program" --version) serves 2 guests and 2 devices" ] || fail "it says: $(cat /run/said)"
    [ "$(daemon_pid)" = "$daemon" ] || fail "the daemon is another process"
    goes_on
    for pid in $daemon $(worker_pids); do
        [ "$(readlink "/proc/$pid/exe")" = "$program" ] || fail "process $pid is not of $program"
    done
}

refusals() {
    refuses /run/disks/one "Cannot run /run/disks/one: Permission denied"
    echo '#!/bin/sh' >/run/next/later
    echo "echo '{\"program\": \"9.0.0\", \"protocol\": [900], \"record\": [900]}'" >>/run/next/later
    chmod +x /run/next/later
    refuses /run/next/later "xen-virtio 9.0.0 cannot go on with guests of "
    fio_writes bytes_written xvda
}

# refuses PROGRAM WORDS: `xen-virtio upgrade` to this says so, and touches nothing.
refuses() {
    running=$(daemon_pid; worker_pids)
    ! xen-virtio upgrade --binary "$1" >/run/said 2>&1 || fail "$1 was not refused: $(cat /run/said)"
    cat /run/said
    grep -q "^xen-virtio: Nothing was changed: $2" /run/said || fail "of $1 it says: $(cat /run/said)"
    [ "$(daemon_pid; worker_pids)" = "$running" ] || fail "$1 was refused, and other processes run"
}

# There is no service manager here. The guest writes; its device is given up, and it does not stand still.
both_end_at_once() {
    in_guest two 'start_fio vda'
    fio_writes bytes_written xvda
    # shellcheck disable=SC2046 # words
    check kill -KILL $(daemon_pid) $(worker_pids)
    wait_until 10 no_workers || fail "the worker is there still"
    start_daemon
    wait_until 30 is_given_up || fail "the device is not given up: $(xen-virtio list)"
    xen-virtio list
    in_guest two 'grep -q 0x0000004f /sys/bus/virtio/devices/virtio0/status'
    tail -n 10 "$daemon_log"
    grep "given up.*domid=$(domid two) .*given_up" "$daemon_log" || fail "the log does not say so: $(tail -n 10 "$daemon_log")"
}

is_given_up() { xen-virtio list | grep -q ': given up'; }

guest_loaded() {
    need_disk vda
    guest_obey
}
