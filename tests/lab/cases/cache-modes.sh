# Every cache mode and both engines, on a file system of Dom0 that has O_DIRECT: what the
# guest wrote and flushed is in the image.
# shellcheck shell=sh

disks="none-io_uring none-plain writethrough-io_uring writethrough-plain writeback-plain"

dom0() {
    store=$(new_disk store 48)
    check /usr/sbin/mke2fs -q -t ext4 "$store"
    check mount -t ext4 -o loop "$store" /mnt
    for disk in $disks; do truncate -s 2M "/mnt/$disk"; done
    # shellcheck disable=SC2046 # paths
    guest modes write $(for disk in $disks; do echo "/mnt/$disk"; done)
    mkdir -p /etc/xen-virtio/guests
    letter=a
    for disk in $disks; do
        printf '[[disk]]\nvdev = "xvd%s"\ncache = "%s"\nengine = "%s"\n' "$letter" "${disk%-*}" "${disk#*-}"
        letter=$(echo "$letter" | tr a-y b-z)
    done >/etc/xen-virtio/guests/modes.toml
    create modes
    finish modes

    sums=$(for disk in $disks; do sum_of "/mnt/$disk"; done)
    check umount /mnt
    [ "$(said modes sum)" = "$sums" ] || fail "an image holds something else than the guest wrote"
}

guest_write() {
    need_disk vde
    for disk in vda vdb vdc vdd vde; do
        dd if=/dev/urandom of=/tmp/pattern bs=1M count=2 2>/dev/null
        # Past the guest's page cache, 27 sectors at a time.
        check dd if=/tmp/pattern of=/dev/$disk bs=13824 oflag=direct conv=fsync 2>/dev/null
        drop_caches
        check cmp /tmp/pattern /dev/$disk
        say "sum $(sum_of /tmp/pattern)"
    done
}
