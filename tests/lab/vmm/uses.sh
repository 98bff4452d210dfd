# What cases do with a guest's devices, whichever way the guest has come by them. The guest is 192.168.77.2
# on the bridge `lab`; the sockets of its vsock begin with $vsock. Sourced after lib.sh.
# shellcheck shell=bash

vsock=/run/guest-vsock

use_disk() {
    in_guest '/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt && cp /bin/busybox /mnt/'
    in_guest "fio --name=verify --filename=/mnt/verify --size=8M $fio_writes --verify=crc32c"
    in_guest 'umount /mnt && e2fsck -fn /dev/vda && mount -t ext4 /dev/vda /mnt'
    in_guest 'cmp /mnt/busybox /bin/busybox && umount /mnt'
    disk_is_sound
}

# Two jobs, which Linux has on both CPUs, so that both queues are used.
fio_writes="--numjobs=2 --group_reporting --offset_increment=8M --rw=randwrite --bsrange=4k-64k
 --ioengine=libaio --iodepth=16 --direct=1"
fio_writes=${fio_writes//$'\n'/}

# What the guest has written is in the image as a file system.
disk_is_sound() { e2fsck -fn "$vmm_out/disks/$case"; }

use_network() {
    in_guest 'ip link set eth0 up && ip address add 192.168.77.2/24 dev eth0'
    ping -c 3 -s 20000 192.168.77.2
    in_guest 'iperf3 -c 192.168.77.1 -n 32M'
    in_guest 'iperf3 -c 192.168.77.1 -n 32M --reverse'
}

use_entropy() {
    in_guest 'grep virtio_rng /sys/class/misc/hw_random/rng_current'
    # One block in 1,200 fails by chance.
    in_guest 'rngtest -c 20 </dev/hwrng 2>&1 | tee /tmp/rngtest; grep -q "failures: [0-2]$" /tmp/rngtest'
}

# A megabyte through an echo on the other side, both ways.
use_sockets() {
    local echoing
    socat "UNIX-LISTEN:${vsock}_1234" EXEC:cat &
    echoing=$!
    wait_until 30 test -S "${vsock}_1234"
    in_guest 'echo_of "socat -t 60 - VSOCK-CONNECT:2:1234"'
    wait "$echoing"
    in_guest 'socat VSOCK-LISTEN:1235,fork EXEC:cat >/dev/null 2>&1 &'
    dd if=/dev/urandom of=/run/test-noise bs=64k count=16 2>/dev/null
    # A connection is refused as long as nobody in the guest listens.
    wait_until 30 guest_accepts || fail "the guest does not accept over vsock: $(head -c 100 /run/test-echo)"
    tail -n +2 /run/test-echo | cmp - /run/test-noise
}

guest_accepts() {
    { echo "CONNECT 1235" && cat /run/test-noise; } 2>/dev/null |
        socat -t 60 - "UNIX-CONNECT:$vsock" >/run/test-echo 2>>"$logs/socat.log"
    head -n 1 /run/test-echo | grep -aq '^OK [0-9]*$'
}
