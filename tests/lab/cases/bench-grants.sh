# What `make bench-lab` counts of memory that is reached by grants, beside foreign mapping of the
# same guest: of disks with and without O_DIRECT, of network interfaces, and of the calls
# themselves. Not one of the cases, though written like them.
# shellcheck shell=sh

# shellcheck source=tests/lab/cases/bench-net.sh
. /lab/cases/bench-net.sh
# shellcheck source=tests/lab/cases/bench-disk.sh
. /lab/cases/bench-disk.sh

workloads() {
    workloads_on vda -foreign
    workloads_on vdb -grants
    workloads_on vdc -direct-foreign | grep -v 'randread-1-\|write'
    workloads_on vdd -direct-grants | grep -v 'randread-1-\|write'
}

dom0() {
    measure_disks
    measure_interfaces
}

# Those with O_DIRECT are block devices, as the file systems in Dom0's memory have none.
measure_disks() {
    for name in a b c d; do noise "$(new_disk $name 64)" 64; done
    modprobe loop
    check losetup /dev/loop0 /run/disks/c
    check losetup /dev/loop1 /run/disks/d
    guest disks fio
    set_option disks "disk = [ $(disk a 0 /run/disks/a), $(disk b 1 /run/disks/b), $(
        disk c 0 /dev/loop0), $(disk d 1 /dev/loop1) ]"
    with_own_kernel disks
    entries disks <<END
[[disk]]
vdev = "xvdc"
cache = "none"
[[disk]]
vdev = "xvdd"
cache = "none"
END
    measure_guest disks
    losetup -d /dev/loop0
    losetup -d /dev/loop1
}

# disk LETTER GRANT_USAGE TARGET
disk() { echo "'$disk_spec, vdev=xvd$1, grant_usage=$2, target=$3'"; }

measure_interfaces() {
    guest nets both
    with_own_kernel nets
    set_option nets "virtio = [ $(virtio_net 0), $(virtio_net 1) ]"
    entries nets <<END
[[net]]
bridge = "lab"
mac = "00:16:3e:77:00:02"
[[net]]
bridge = "lab"
mac = "00:16:3e:77:00:04"
END
    begin_networks nets
    measure_networks foreign:02 grants:04
    measure_calls nets
    end_networks
}

virtio_net() { echo "'type=virtio,device1,transport=mmio,grant_usage=$1'"; }

# measure_calls NAME: of grants of this guest. The rings of Xen's own interface are granted for as
# long as it is there.
measure_calls() {
    vif=/local/domain/$(domid "$1")/device/vif/0
    /lab/grants "$(domid "$1")" "$(xenstore-read "$vif/tx-ring-ref")" "$(xenstore-read "$vif/rx-ring-ref")" |
        sed '1d; s/^/@@ figures grant-costs /'
}
