# A guest does all that it must not do to its devices, one after the other: nothing comes of it but that the device
# wants a reset, and none of its other devices, its neighbour, its worker or Dom0 notices. To the first two of its devices;
# in `make soak` to all five.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by tests/lab/run
needs_hostile_guest=yes

dom0() {
    new_bridge lab 192.168.77.1/24
    guest neighbour verifying "$(new_disk neighbour 16)"
    with_fio neighbour
    create neighbour
    expect neighbour verifying 120
    guest hostile obey "$(new_disk hostile 16)"
    with_virtio hostile 1 3 4 13
    entries hostile <<END
[[net]]
bridge = "lab"

[[console]]

[[rng]]

[[vsock]]
END
    # Its kernel keeps programs from registers in a page in which a driver has others, unless it is told not to.
    sed -i 's/ quiet / quiet iomem=relaxed /' "$guests/hostile.cfg"
    create hostile
    expect hostile obeying 120
    worker=$(worker_pids)
    patience=600
    for address in $(in_guest hostile device_addresses | head -n "${HOSTILE_DEVICES:-2}"); do
        in_guest hostile "let_go $address"
        in_guest hostile "hostile-guest $address" >"/lab/logs/hostile-$address.log" ||
            fail "at $address: $(grep FAIL "/lab/logs/hostile-$address.log" | head -n 3)"
        tail -n 1 "/lab/logs/hostile-$address.log"
    done
    moves=$(cat /lab/logs/hostile-*.log | grep -c '^ok ')
    echo "$moves moves"
    [ "$moves" -ge 400 ] || fail "there were $moves moves only"
    [ "$(worker_pids)" = "$worker" ] || fail "a worker died of it: $(worker_pids) instead of $worker"
    tell hostile end
    finish hostile
    tell neighbour enough
    finish neighbour
}

# let_go WINDOW: takes the kernel's driver from the device there.
let_go() { echo "${1#0x}.virtio" >/sys/bus/platform/drivers/virtio-mmio/unbind; }

guest_verifying() {
    need_disk vda
    start_fio vda
    say "verifying"
    listen
    wait_until 3000 was_told
    touch /tmp/enough
    wait_until 300 test -e /tmp/fio-ended
    check test -e /tmp/verified
}
