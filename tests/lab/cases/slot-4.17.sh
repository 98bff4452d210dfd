# libxl of 4.17 knows virtio disks only, but its slots carry any device: the disk's target is then
# the file of the device's entry.
# shellcheck shell=sh

dom0() {
    new_bridge lab 192.168.77.1/24
    mkdir -p /etc/xen-virtio/slot
    cat >/etc/xen-virtio/slot/eth0.toml <<END
[[net]]
bridge = "lab"
END
    cat >/etc/xen-virtio/slot/console.toml <<END
[[console]]
sink = "file"
path = "/run/slot-console"
END
    guest slot use "$(new_disk slot 1)" /etc/xen-virtio/slot/eth0.toml /etc/xen-virtio/slot/console.toml
    create slot
    finish slot
    grep -q 'printed by the guest' /run/slot-console || fail "the console's file lacks the guest's words"
}

guest_use() {
    need_disk vda
    need_net eth0 192.168.77.2/24
    check ping -c 3 -W 10 192.168.77.1
    wait_until 10 test -c /dev/hvc1 || fail "there is no console hvc1"
    stty raw </dev/hvc1
    echo "printed by the guest" >/dev/hvc1
}
