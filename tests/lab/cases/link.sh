# `xen-virtio link` takes a guest's carrier and gives it back: traffic stops, and goes on.
# shellcheck shell=sh

dom0() {
    new_bridge lab 192.168.77.1/24
    guest link wired
    with_virtio link 1
    entries link <<END
[[net]]
bridge = "lab"
END
    create link
    expect link obeying 60
    reaches 192.168.77.2 || fail "the guest cannot be reached"

    check xen-virtio link link net0 down
    wait_until 10 carrier_is 0 || fail "the guest still has a carrier"
    ! ping -c 1 -W 3 192.168.77.2 || fail "the guest can be reached without a link"
    if ask link 'ping -c 1 -W 3 192.168.77.1'; then fail "the guest reaches Dom0 without a link"; fi

    check xen-virtio link link net0 up
    wait_until 10 carrier_is 1 || fail "the guest's carrier does not come back"
    reaches 192.168.77.2 || fail "the guest cannot be reached again"

    # What there is no link of.
    if xen-virtio link link net1 down 2>/run/refused; then fail "a link that is not there went down"; fi
    grep -q net1 /run/refused || fail "the refusal does not name the device: $(cat /run/refused)"
    tell link end
    finish link
}

carrier_is() { [ "$(in_guest link 'cat /sys/class/net/eth0/carrier')" = "$1" ]; }

guest_wired() {
    need_net eth0 192.168.77.2/24
    guest_obey
}
