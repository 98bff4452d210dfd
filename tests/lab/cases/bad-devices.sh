# What a guest's file asks for and cannot be served is missing in the guest, which comes up all
# the same; the log says in which line the mistake is, and so does `xen-virtio check` beforehand.
# shellcheck shell=sh

dom0() {
    # A file that cannot be read as one has nothing to say of any device.
    misconfigure unknown-key nothing 2 bridgee <<END
[[net]]
bridgee = "lab"
END
    check_says unknown-key 2 bridgee
    misconfigure wrong-value nothing 3 queues <<END
[[rng]]

[[net]]
queues = 99
END
    check_says wrong-value 3 queues
    # What is wrong with one device only, and only to be seen when it is opened.
    misconfigure no-bridge only_entropy 1 'ip link add nowhere' <<END
[[net]]
bridge = "nowhere"
END
}

# misconfigure NAME PART LINE WORD: starts a guest with network and entropy and this file; the
# log must name the line, and say the word.
misconfigure() {
    guest "$1" "$2"
    with_virtio "$1" 1 4
    entries "$1"
    create "$1"
    finish "$1"
    grep "$1.toml:$3" "$daemon_log" | grep -q "$4" || fail "the log does not say what is wrong: $(tail -n 5 "$daemon_log")"
}

# check_says NAME LINE WORD: `xen-virtio check` refuses the guest for this reason.
check_says() {
    if xen-virtio check "$guests/$1.cfg" >/run/checked 2>&1; then fail "xen-virtio check accepts $1"; fi
    grep "$1.toml:$2" /run/checked | grep -q "$3" || fail "xen-virtio check says something else: $(cat /run/checked)"
}

guest_nothing() {
    has_two_addresses
    [ "$(ls /sys/bus/virtio/devices)" = "" ] || fail "there is a device: $(ls /sys/bus/virtio/devices)"
}

guest_only_entropy() {
    has_two_addresses
    wait_until 10 grep -q virtio_rng /sys/class/misc/hw_random/rng_current || fail "the entropy device is not in use"
    [ ! -e /sys/class/net/eth0 ] || fail "there is a network interface"
}

has_two_addresses() { [ "$(device_addresses | wc -l)" -eq 2 ] || fail "the guest is not told of two devices"; }
