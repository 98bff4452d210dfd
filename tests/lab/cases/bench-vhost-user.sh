# What `make bench-lab` counts of a disk whose backend is another program, reached by vhost-user:
# qemu-storage-daemon, and our own. Not one of the cases, though written like them. The figures of
# our disk without vhost-user are those of bench-disk.
# shellcheck shell=sh

# shellcheck source=tests/lab/cases/bench-disk.sh
. /lab/cases/bench-disk.sh

workloads() { workloads_on vda | grep randread; }

dom0() {
    noise "$(new_disk bench 64)" 64
    new_foreign_disk disk /run/disks/bench
    measure_backend qemu-storage-daemon
    new_own_disk disk /run/disks/bench
    measure_backend virtio-disk
}

# measure_backend NAME: measures a guest whose disk this backend has, and ends it.
measure_backend() {
    guest "$1" fio
    with_virtio "$1" 2
    entries "$1" <<END
[[vhost-user]]
device = "block"
socket = "$(socket disk)"
END
    measure_guest "$1" "-$1" "$(backend_pid disk)"
    end_backend disk
}

new_own_disk() {
    ln -sf xen-virtio /usr/sbin/virtio-disk
    new_backend "$1" virtio-disk vhost-user --socket "$(socket "$1")" "image=$2"
}
