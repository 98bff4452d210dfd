# What `make demo` shows; not one of the cases, though written like them. Each line that a
# person is to see starts with "@@ ".
# shellcheck shell=sh

dom0() {
    step "Xen and Dom0 are up: $(xl info xen_version | sed 's/^/Xen /'), Linux $(uname -r)"
    shell "xl info | grep -E 'xen_version|xen_caps|total_memory|free_memory'"

    step "xen-virtio, in Dom0, waits for guests"
    run "xen-virtio serve &"
    start_daemon

    step "A disk, a network card and a console for a guest: words in its xl configuration, and a file with the rest"
    shell "truncate -s 64M /run/disk.img"
    new_bridge br0 192.168.77.1/24
    guest demo all /run/disk.img
    with_net_programs demo
    with_virtio demo 1 3
    shell "grep -E '^(name|memory|disk|virtio)' $guests/demo.cfg"
    entries demo <<END
[[net]]
bridge = "br0"
END
    shell "cat /etc/xen-virtio/guests/demo.toml"
    shell "xen-virtio check $guests/demo.cfg"

    step "xl creates the guest, an unmodified Debian kernel"
    run "xl create demo.cfg"
    create demo
    expect demo obeying 60
    guest_shell "dmesg | grep -o 'virtio_blk virtio.*'"
    guest_shell "/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt"
    guest_shell "echo \"Linux \$(uname -r) wrote this to a disk served by xen-virtio\" >/mnt/hello.txt && sync"

    step "The network: an address in the guest, on the bridge of Dom0"
    guest_shell "ip link set eth0 up && ip address add 192.168.77.2/24 dev eth0"
    shell "ping -c 2 192.168.77.2 | grep bytes"
    shell "iperf3 -s -D"
    guest_shell "iperf3 -c 192.168.77.1 -n 16M | grep -E 'sender|receiver'"

    step "The console: a shell of the guest, in Dom0's hands"
    in_guest demo 'setsid sh -c "exec sh -i </dev/hvc1 >/dev/hvc1 2>&1" &'
    shell "echo 'ls /mnt && exit' | xen-virtio console demo"

    step "Dom0 sees whom xen-virtio serves"
    shell "xl list"
    shell "xen-virtio list"

    step "The guest unmounts and ends; Dom0 reads what it wrote"
    guest_shell "umount /mnt"
    tell demo end
    finish demo
    shell "e2fsck -fn /run/disk.img 2>&1 | tail -n 1"
    shell "mount -t ext4 -o loop,ro /run/disk.img /mnt"
    shell "cat /mnt/hello.txt"
    grep -q 'served by xen-virtio' /mnt/hello.txt || fail "the guest's file is not in the image"
    shell "umount /mnt"
}

step() { echo "@@ step $*"; }

# Shows a command, and runs it unless it is only to be shown.
run() { echo "@@ show dom0# $*"; }

shell() {
    run "$*"
    # A shell asks its terminal where the cursor is; that question is not for a reader's.
    sh -c "$*" 2>&1 | sed "s/$(printf '\033')\[6n//; s/^/@@ show /"
}

guest_shell() {
    echo "@@ show guest# $*"
    in_guest demo "$*" >/run/shown
    sed 's/^/@@ show /' /run/shown
}

guest_all() {
    need_disk vda
    send_large_packets
    guest_obey
}
