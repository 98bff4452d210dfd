# A guest's worker is killed again and again, at random moments, while the guest verifies two disks,
# pings and prints. Another one follows each time, and the guest sees neither an error nor an end:
# only I/O that takes longer. 100 kills, and 1,000 in `make soak`.
# shellcheck shell=sh

dom0() {
    kills=${WORKER_KILLS:-100}
    # shellcheck disable=SC3028 # busybox has it, and takes a seed
    RANDOM=${SEED:-1}
    # As many ends of a worker as we want in any minute, and no device is given up.
    restart_daemon --restarts 1000
    new_bridge lab 192.168.77.1/24
    new_disk cached 16 >/dev/null
    # O_DIRECT takes a file system that has it.
    store=$(new_disk store 64)
    check /usr/sbin/mke2fs -q -t ext4 "$store"
    check mount -t ext4 -o loop "$store" /mnt
    truncate -s 16M /mnt/direct
    memory=$(free_mib)
    new_guest
    create kill
    expect kill obeying 60

    in_guest kill 'start_fio vda vdb; start_pings; start_printing'
    fio_writes bytes_written
    kill_again_and_again
    in_guest kill 'touch /tmp/enough-printed'
    fio_ends_well kill
    echo "$(counter restarts) restarts"
    [ "$(counter restarts)" -eq "$kills" ] || fail "there were $kills kills: $(xen-virtio list)"
    all_devices_work
    noticed_nothing kill

    in_guest kill 'start_fio vda vdb'
    is_not_saved
    kill_one
    check destroy kill
    wait_until 20 no_workers || fail "a worker outlives the guest"
    memory_is_back "$memory"
    [ ! -e /sys/class/net/kill-net0 ] || fail "the tap is left"
    check umount /mnt
    restart_daemon
}

new_guest() {
    guest kill loaded /run/disks/cached /mnt/direct
    with_all_programs kill
    with_virtio kill 1 3 4 13
    entries kill <<END
[[disk]]
vdev = "xvdb"
cache = "none"

[[net]]
bridge = "lab"

[[console]]
[[console.port]]
name = "lines"
sink = "file"
path = "/run/lines"

[[rng]]

[[vsock]]
END
}

kill_again_and_again() {
    # Process 1 of a namespace obeys no other signal from outside.
    for _ in $(seq "$kills"); do kill_one; done
}

# Kills the worker, and waits until another runs, and then for up to 0.7 s.
kill_one() {
    worker=$(worker_pids)
    kill -KILL "$worker" || fail "there is no worker to be killed: $(xen-virtio list)"
    wait_until 30 is_followed || fail "no other worker follows: $(tail -n 3 "$daemon_log")"
    # shellcheck disable=SC3028
    sleep "0.$((RANDOM % 8))"
}

# Each is used, and what went through it while workers were killed is whole.
all_devices_work() {
    [ "$(in_guest kill 'drop_caches; sum_of /dev/vda')" = "$(sum_of /run/disks/cached)" ] || fail "the guest reads something else from vda than the image holds"
    [ "$(in_guest kill 'drop_caches; sum_of /dev/vdb')" = "$(sum_of /mnt/direct)" ] || fail "the guest reads something else from vdb than the image holds"
    reaches 192.168.77.2 || fail "the guest does not answer a ping any more"
    in_guest kill 'grep -q ttl /tmp/pings'
    in_guest kill 'wait_until 20 test -e /tmp/printed; cat /tmp/printed' >/run/printed
    # A line may come twice.
    awk '!seen[$0]++' /run/lines >/run/different
    seq "$(cat /run/printed)" | cmp - /run/different || fail "the console's file lacks lines, or has others: $(tail -n 3 /run/lines)"
    echo "$(cat /run/printed) lines were printed, and $(wc -l </run/lines) arrived"
    in_guest kill 'dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c'
    socat "UNIX-LISTEN:/run/xen-virtio/vsock/kill.sock_1234" EXEC:cat &
    in_guest kill 'echo_of "socat -t 60 - VSOCK-CONNECT:2:1234"'
    log_in kill
}

# xl has no way to save a guest on Arm; one that it is asked to save goes on.
is_not_saved() {
    fio_writes bytes_written
    ! xl save kill /run/saved >/run/said 2>&1 || fail "xl has saved the guest"
    cat /run/said
    fio_writes bytes_written
    reaches 192.168.77.2 || fail "the guest does not answer a ping any more"
}

guest_loaded() {
    need_disk vdb
    need_net eth0 192.168.77.2/24
    let_root_in
    guest_obey
}

start_pings() { ping 192.168.77.1 >/tmp/pings 2>&1 & }

# Numbers on a console port until there is /tmp/enough-printed; leaves how many in /tmp/printed.
start_printing() {
    port=/dev/$(basename "$(dirname "$(grep -l '^lines$' /sys/class/virtio-ports/*/name)")")
    print_numbers "$port" &
}

print_numbers() {
    number=0
    until [ -e /tmp/enough-printed ]; do
        number=$((number + 1))
        echo "$number"
        sleep 0.05
    done >"$1"
    echo "$number" >/tmp/printed
}
