# A guest whose worker dies again and again has its devices given up, in words, and loses nothing
# else: its CPUs go on, its neighbour does not notice, and it can be destroyed and created again.
# shellcheck shell=sh

dom0() {
    # With the limit that it has by default, whatever came before.
    restart_daemon
    noise "$(new_disk neighbour 8)" 8
    guest neighbour obey /run/disks/neighbour
    create neighbour
    expect neighbour obeying 60
    neighbours_worker=$(worker_pids)
    guest loop use "$(new_disk loop 8)"
    create loop
    expect loop obeying 60

    until is_given_up; do kill_worker; done
    [ "$(counter restarts)" -ge 5 ] || fail "given up too early: $(xen-virtio list)"
    in_guest loop 'grep -q 0x0000004f /sys/bus/virtio/devices/virtio0/status'
    grep "xl destroy.*domid=$(domid loop) .*given_up" "$daemon_log" || fail "the log does not say what to do: $(tail -n 3 "$daemon_log")"
    xen-virtio list
    tail -n 30 "$daemon_log"
    [ "$(in_guest neighbour 'drop_caches; sum_of /dev/vda')" = "$(sum_of /run/disks/neighbour)" ] || fail "the neighbour reads something else"
    check destroy loop
    wait_until 20 has_workers 1 || fail "a worker is left: $(xen-virtio list)"
    [ "$(worker_pids)" = "$neighbours_worker" ] || fail "the neighbour has another worker"

    create loop
    wait_until 60 has_booted loop 2 || fail "the guest does not come up again"
    in_guest loop 'dd if=/dev/vda of=/dev/null bs=1M count=8 2>/dev/null'
    check destroy loop
    check destroy neighbour
}

is_given_up() { xen-virtio list | grep -q ': given up'; }

# That of the guest that is not the neighbour.
kill_worker() {
    worker=$(worker_pids | grep -v "^$neighbours_worker\$") && kill -KILL "$worker"
    sleep 1
}

guest_use() {
    need_disk vda
    while :; do dd if=/dev/zero of=/dev/vda bs=64k count=128 oflag=direct; done >/dev/null 2>&1 &
    guest_obey
}
