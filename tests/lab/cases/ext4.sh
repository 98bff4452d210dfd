# A guest makes a file system, fills it and unmounts; Dom0 finds it clean and whole.
# shellcheck shell=sh

dom0() {
    image=$(new_disk ext4 64)
    run_guest ext4 use "$image"

    check e2fsck -fn "$image"
    check mount -t ext4 -o loop,ro "$image" /mnt
    sums=$(for file in busybox copy/mke2fs; do sum_of "/mnt/$file"; done)
    [ "$(said ext4 sum)" = "$sums" ] || fail "a file is not what the guest wrote"
    check umount /mnt
}

guest_use() {
    need_disk vda
    check /usr/sbin/mke2fs -q -t ext4 /dev/vda
    check mount -t ext4 /dev/vda /mnt
    check cp /bin/busybox /mnt/
    check mkdir /mnt/copy
    check cp /usr/sbin/mke2fs /mnt/copy/
    say "sum $(sum_of /bin/busybox)"
    say "sum $(sum_of /usr/sbin/mke2fs)"
    check umount /mnt
    check e2fsck -fn /dev/vda
}
