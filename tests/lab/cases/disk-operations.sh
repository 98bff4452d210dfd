# What operators do to disks while a guest uses them, and what its driver asks for: images that
# grow, a file system that is full for a while, limits, a cache turned off and on.
# Nothing that the guest wrote is lost by any of it.
# shellcheck shell=sh

dom0() {
    patience=200
    new_disk grown 32
    noise "$(new_disk looped 32)" 32
    noise "$(new_disk limited 4)" 4
    modprobe loop
    loop=$(losetup -f)
    check losetup "$loop" /run/disks/looped
    # Half of what the guest will write.
    check mount -t tmpfs -o size=8m full /mnt
    truncate -s 32M /mnt/held

    # A disk has as many queues as its guest and its host have CPUs.
    echo 1 >/sys/devices/system/cpu/cpu1/online
    guest operations obey_with_disks /run/disks/grown "$loop" /mnt/held /run/disks/limited
    set_option operations 'memory = 256'
    set_option operations 'vcpus = 2'
    entries operations <<END
[[disk]]
vdev = "xvdb"
block_size = 4096
serial = "lab-looped"

[[disk]]
vdev = "xvdc"
on_error = "hold"

[[disk]]
vdev = "xvdd"
iops = { per_second = 5, burst = 5 }
bandwidth = { per_second = 400000, burst = 100000 }
END
    create operations
    expect operations obeying 60
    shape
    limits
    file_grows
    device_grows
    cache_off_and_on
    full_file_system
    xen-virtio list
    tell operations end
    finish operations
    wait_until 15 no_workers || fail "the worker outlives its guest"
    check losetup -d "$loop"
    check umount /mnt
    echo 0 >/sys/devices/system/cpu/cpu1/online
}

shape() {
    [ "$(in_guest operations 'ls /sys/block/vda/mq | wc -l')" = 2 ] || fail "the disk has not a queue for each CPU"
    [ "$(in_guest operations 'cat /sys/block/vdb/queue/logical_block_size')" = 4096 ] || fail "block_size does not reach the guest"
    [ "$(in_guest operations 'cat /sys/block/vdb/serial')" = lab-looped ] || fail "the serial number does not reach the guest"
}

# Every read is done, and some had to wait for it; no other disk's did.
limits() {
    in_guest operations 'dd if=/dev/vdd of=/dev/null bs=4k count=30 iflag=direct 2>/dev/null'
    many=$(counter throttled xvdd)
    [ "$many" -gt 0 ] || fail "small reads did not meet the limit: $(xen-virtio list)"
    [ "$(in_guest operations 'sum_of /dev/vdd')" = "$(sum_of /run/disks/limited)" ] || fail "the guest reads something else than the image holds"
    [ "$(counter throttled xvdd)" -gt "$many" ] || fail "large reads did not meet the limit: $(xen-virtio list)"
    [ "$(counter throttled)" -eq "$(counter throttled xvdd)" ] || fail "disks without a limit waited: $(xen-virtio list)"
}

# A file system in use grows with its image.
file_grows() {
    in_guest operations '/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt && mkdir /mnt/files && fill before 12'
    check truncate -s 64M /run/disks/grown
    check xen-virtio resize operations xvda
    in_guest operations 'wait_until 20 has_sectors vda 131072 && /usr/sbin/resize2fs /dev/vda 2>&1 && fill after 36'
    in_guest operations 'sum_of_files /mnt/files && umount /mnt' >/run/sum
    check e2fsck -fn /run/disks/grown
    mkdir -p /run/grown
    check mount -t ext4 -o loop,ro /run/disks/grown /run/grown
    [ "$(sum_of_files /run/grown/files)" = "$(tail -n 1 /run/sum)" ] || fail "the file system holds something else than the guest wrote"
    check umount /run/grown
}

# A block device grows while it is read; it does not shrink unasked.
device_grows() {
    in_guest operations 'read_on vdb >/tmp/reading 2>&1 &'
    check truncate -s 48M /run/disks/looped
    check losetup -c "$loop"
    check xen-virtio resize operations xvdb
    in_guest operations 'wait_until 20 has_sectors vdb 98304 && touch /tmp/enough && wait_until 60 grep ended /tmp/reading'
    check truncate -s 32M /run/disks/looped
    check losetup -c "$loop"
    if xen-virtio resize operations xvdb >/run/refusal 2>&1; then fail "a disk shrank without --shrink"; fi
    grep -q -- --shrink /run/refusal || fail "the refusal does not say what to do: $(cat /run/refusal)"
    in_guest operations 'has_sectors vdb 98304'
    check xen-virtio resize operations xvdb --shrink
    in_guest operations 'wait_until 20 has_sectors vdb 65536'
}

# What the guest takes for a disk without a cache gets no flushes, and needs none.
cache_off_and_on() {
    for cache in "write through" "write back"; do
        in_guest operations "echo $cache >/sys/block/vdb/cache_type"
        [ "$(in_guest operations 'cat /sys/block/vdb/cache_type')" = "$cache" ] || fail "the cache does not become $cache"
        before=$(counter flushes xvdb)
        in_guest operations 'dd if=/dev/urandom of=/dev/vdb bs=64k count=64 conv=fsync,notrunc 2>/dev/null; drop_caches; sum_of /dev/vdb' >/run/sum
        [ "$(sum_of "$loop")" = "$(cat /run/sum)" ] || fail "the image holds something else than the guest wrote with $cache"
        case $cache:$(($(counter flushes xvdb) - before)) in
        "write through:0") ;;
        "write back:0" | "write through:"*) fail "another number of flushes with $cache: $(xen-virtio list)" ;;
        esac
    done
}

# The guest's writes wait until there is room, and nothing of them is lost.
full_file_system() {
    in_guest operations 'random_mib 16 >/tmp/random; sum_of /tmp/random' >/run/sum
    in_guest operations '{ dd if=/tmp/random of=/dev/vdc bs=64k conv=fsync,notrunc; echo "ended $?"; } >/tmp/writing 2>&1 &'
    wait_until 60 holds || fail "nothing is held: $(xen-virtio list)"
    grep -q "wait from now on: .*resume" "$daemon_log" || fail "the log does not say how to go on"
    # Without room it ends as it did.
    check xen-virtio resume operations xvdc
    wait_until 60 holds || fail "nothing is held any more, and there is no room: $(xen-virtio list)"
    in_guest operations '! grep ended /tmp/writing'
    check mount -o remount,size=32m /mnt
    check xen-virtio resume operations xvdc
    in_guest operations 'wait_until 50 grep "ended 0" /tmp/writing || { cat /tmp/writing && false; }'
    [ "$(counter held xvdc)" -eq 0 ] || fail "something is held that nobody waits for: $(xen-virtio list)"
    [ "$(head -c 16777216 /mnt/held | sha256sum | cut -d ' ' -f 1)" = "$(cat /run/sum)" ] || fail "the image holds something else than the guest wrote"
}

holds() { [ "$(counter held xvdc)" -gt 0 ]; }

guest_obey_with_disks() {
    need_disk vdd
    guest_obey
}

has_sectors() { [ "$(cat "/sys/block/$1/size")" = "$2" ]; }

random_mib() { dd if=/dev/urandom bs=1M count="$1" 2>/dev/null; }

# fill NAME MIB: a file of noise.
fill() { random_mib "$2" >"/mnt/files/$1" && sync; }

# read_on DISK: until there is /tmp/enough; then says "ended".
read_on() {
    until [ -e /tmp/enough ]; do
        drop_caches
        dd if="/dev/$1" of=/dev/null bs=1M count=32 || return
    done
    echo ended
}
