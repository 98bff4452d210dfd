# A guest grants the pages of each request, to devices that may not touch any other: disks under
# every load, a network card, a console, entropy and sockets. It reboots and is destroyed amid I/O.
# Nothing of its memory is ever mapped by frame number. A guest whose kernel cannot grant loses its
# device, in words, and nobody else does.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by tests/lab/run
needs_own_kernel=yes

dom0() {
    new_bridge lab 192.168.77.1/24
    store=$(new_disk store 96)
    check /usr/sbin/mke2fs -q -t ext4 "$store"
    check mount -t ext4 -o loop "$store" /mnt
    noise /mnt/direct 32
    noise "$(new_disk cached 32)" 32
    memory=$(free_mib)
    guest grants all /mnt/direct /run/disks/cached
    with_all_programs grants
    with_virtio grants 1 3 4 13
    with_own_kernel grants
    with_grants grants
    entries grants <<END
[[disk]]
vdev = "xvda"
cache = "none"

[[net]]
bridge = "lab"

[[console]]
sink = "file"
path = "/run/grants-console"

[[rng]]

[[vsock]]
END
    create grants
    expect grants obeying 60
    disks
    file_system
    network
    the_rest
    only_grants_are_used

    guest_without_grants
    [ "$(in_guest grants 'drop_caches; sum_of /dev/vdb')" = "$(sum_of /run/disks/cached)" ] ||
        fail "the guest's disk has other data beside a guest without grants"

    first=$(domid grants)
    tell grants "reboot -f"
    wait_until 120 is_gone "$first" || fail "domain $first is still there"
    wait_until 120 has_booted grants 2 || fail "the guest does not come back"
    [ "$(in_guest grants 'drop_caches; sum_of /dev/vdb')" = "$(sum_of /run/disks/cached)" ] ||
        fail "the guest reads something else after its reboot"
    in_guest grants load
    only_grants_are_used
    check destroy grants
    wait_until 15 no_workers || fail "the worker outlives its guest"
    memory_is_back "$memory"
    check umount /mnt
}

# What one side writes, the other reads, with O_DIRECT on both and with neither.
disks() {
    patience=400
    for disk in "vda /mnt/direct direct" "vdb /run/disks/cached fsync"; do
        # shellcheck disable=SC2086 # a device, an image, a flag
        set -- $disk
        [ "$(in_guest grants "sum_of /dev/$1")" = "$(sum_of "$2")" ] || fail "the guest reads from $1 something else than the image holds"
        in_guest grants "verify $1"
        [ "$(in_guest grants "drop_caches; sum_of /dev/$1")" = "$(sum_of "$2")" ] || fail "image $2 holds something else than the guest wrote"
    done
    patience=150
}

file_system() {
    in_guest grants 'make_files' >/run/sum
    check e2fsck -fn /run/disks/cached
    mkdir -p /run/grants-mounted
    check mount -t ext4 -o loop,ro /run/disks/cached /run/grants-mounted
    [ "$(sum_of_files /run/grants-mounted/files)" = "$(cat /run/sum)" ] || fail "the file system holds something else than the guest wrote"
    check umount /run/grants-mounted
}

network() {
    in_guest grants 'need_net eth0 192.168.77.2/24; send_large_packets'
    iperf3 -s -D
    in_guest grants 'iperf3 -c 192.168.77.1 -n 4M'
    in_guest grants 'iperf3 -c 192.168.77.1 -n 8M --reverse'
    killall iperf3
}

the_rest() {
    in_guest grants 'stty raw </dev/hvc1; echo "printed by the guest" >/dev/hvc1'
    wait_until 10 grep -q 'printed by the guest' /run/grants-console || fail "the console's file lacks the guest's words"
    in_guest grants 'grep -q virtio_rng /sys/class/misc/hw_random/rng_current && rngtest -c 20 </dev/hwrng 2>&1 | grep "failures: [0-2]$"'
    socat "UNIX-LISTEN:/run/xen-virtio/vsock/grants.sock_1234" EXEC:cat &
    in_guest grants 'echo_of "socat -t 60 - VSOCK-CONNECT:2:1234"'
}

only_grants_are_used() {
    xen-virtio list
    for name in grants_mapped grant_copies; do
        [ "$(counter $name)" -gt 0 ] || fail "xen-virtio list counts no $name"
    done
    [ "$(counter cache_map_calls)" -eq 0 ] || fail "the guest's memory was mapped by frame number"
}

# Debian's kernel does not know grants for virtio: it waits ten seconds for who does, and goes on
# without. The driver then waits for ever for a disk that has stopped.
guest_without_grants() {
    guest plain obey "$(new_disk plain 8)"
    with_grants plain
    create plain
    expect plain obeying 60
    in_guest plain load_disk_driver
    wait_until 60 grep -q "guest $(domid plain): .*uses grants only" "$daemon_log" || fail "the log does not say that the guest grants nothing"
    check destroy plain
}

guest_all() {
    need_disk vdb
    guest_obey
}

load_disk_driver() {
    wait_until 30 test -e /sys/bus/virtio/devices/virtio0 || fail "the guest's kernel leaves the device alone"
    modprobe virtio_blk &
}

# Many requests at a time, of all sizes, past the page cache; then everything is read again.
verify() {
    check fio --name=verify --filename="/dev/$1" --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite --bsrange=512-128k \
        --size=32m --io_size=24m --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never --output=/tmp/fio
}

make_files() {
    check /usr/sbin/mke2fs -q -t ext4 /dev/vdb
    check mount -t ext4 /dev/vdb /mnt
    mkdir /mnt/files
    for file in $(seq 200); do head -c "$((file * 100))" /dev/urandom >"/mnt/files/$file"; done
    sum_of_files /mnt/files
    check umount /mnt
}

# Reads, writes and packets until the end.
load() {
    iperf3 -c 192.168.77.1 -t 1000 >/dev/null 2>&1 &
    fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --rw=randrw --bsrange=512-128k --size=32m \
        --time_based --runtime=1000 --eta=never --output=/tmp/fio >/dev/null 2>&1 &
    fio --name=load --filename=/dev/vdb --ioengine=psync --rw=randwrite --bs=4k --size=32m \
        --time_based --runtime=1000 --eta=never --output=/tmp/fio2 >/dev/null 2>&1 &
}
