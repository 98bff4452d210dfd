# A guest with four vCPUs and memory in both of Xen's banks, the second of which is far
# above 4 GiB, uses a disk with several queues from all vCPUs.
# shellcheck shell=sh

dom0() {
    guest large use "$(new_disk large 64)"
    set_option large 'memory = 3400'
    set_option large 'vcpus = 4'
    mkdir -p /etc/xen-virtio/guests
    cat >/etc/xen-virtio/guests/large.toml <<END
[[disk]]
vdev = "xvda"
queues = 4
serial = "lab-large"
END
    create large
    finish large 150
}

guest_use() {
    need_disk vda
    queues=$(ls /sys/block/vda/mq | wc -l)
    [ "$queues" -eq 4 ] || fail "the disk has $queues queues, not 4"
    [ "$(cat /sys/block/vda/serial)" = lab-large ] || fail "the disk's serial is $(cat /sys/block/vda/serial)"
    grep -q '^2[0-9a-f]\{8\}-.*System RAM' /proc/iomem || fail "no memory in the second bank: $(grep RAM /proc/iomem)"
    # Page cache takes memory from the top, so both banks are read into and written from.
    for cpu in 0 1 2 3; do
        taskset "$((1 << cpu))" sh -c "dd if=/dev/urandom of=/tmp/$cpu bs=1M count=8 2>/dev/null &&
            dd if=/tmp/$cpu of=/dev/vda bs=1M seek=$((cpu * 8)) conv=fsync,notrunc 2>/dev/null" &
    done
    wait
    drop_caches
    for cpu in 0 1 2 3; do
        dd if=/dev/vda bs=1M skip=$((cpu * 8)) count=8 2>/dev/null | check cmp - "/tmp/$cpu"
    done
}
