# What `make demo` shows; not one of the cases, though written like them. Each line that a
# person is to see starts with "@@ ".
# shellcheck shell=sh

dom0() {
    step "Xen and Dom0 are up: $(xl info xen_version | sed 's/^/Xen /'), Linux $(uname -r)"
    shell "xl info | grep -E 'xen_version|xen_caps|total_memory|free_memory'"

    step "xen-virtio, in Dom0, waits for guests"
    run "xen-virtio serve &"
    start_daemon

    step "A guest's disk: an image file in Dom0, and a word in the guest's xl configuration"
    shell "truncate -s 64M /run/disk.img"
    guest demo show /run/disk.img
    shell "grep -E '^(name|memory|disk)' $guests/demo.cfg"

    step "xl creates the guest, an unmodified Debian kernel"
    run "xl create demo.cfg"
    create demo
    expect demo "waiting" 60
    said demo shows | sed 's/^/@@ show /'

    step "The guest waits, its file system synced: Dom0 sees whom xen-virtio serves"
    shell "xl list"
    shell "xen-virtio list"

    step "The guest unmounts and ends; Dom0 reads what it wrote"
    tell demo go on
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
    sh -c "$*" 2>&1 | sed 's/^/@@ show /'
}

guest_show() {
    need_disk vda
    show "$(dmesg | sed -n 's/^\[[^]]*\] \(virtio_blk .*\)/\1/p')"
    in_guest "/usr/sbin/mke2fs -q -t ext4 /dev/vda"
    in_guest "mount -t ext4 /dev/vda /mnt"
    in_guest "echo \"Linux \$(uname -r) wrote this to a disk served by xen-virtio\" >/mnt/hello.txt"
    in_guest "df -h /mnt"
    sync
    listen
    say "waiting"
    until was_told; do sleep 0.1; done
    check umount /mnt
}

show() { echo "$*" | sed 's/^/@ shows /'; }

in_guest() {
    show "guest# $*"
    eval "$*" >/tmp/output 2>&1 || fail "$* $(cat /tmp/output)"
    show "$(cat /tmp/output)"
}
