# What cases may use of a driver domain: that of guest-config/driver-domain, named "driver", and
# guests that it serves. Sourced by those cases in Dom0.
# shellcheck shell=sh

# Starts it, with xl devd and our daemon in it, and a bridge that guests' network cards join.
start_driver() {
    mkdir -p "$guests"
    cp /lab/driver-domain.cfg "$guests/driver.cfg"
    set_option driver 'kernel = "/guest/Image-own"'
    set_option driver 'ramdisk = "/guest/driver-domain.cpio"'
    set_option driver 'disk = []'
    set_option driver 'vif = []'
    sed -i 's/^extra *= *"/&rdinit=\/init quiet panic=-1 /' "$guests/driver.cfg"
    former=$(boots driver)
    create driver
    wait_until 60 has_booted driver "$((former + 1))" || fail "the driver domain does not come up: $(tail -n 3 "$(console driver)")"
    in_guest driver 'new_bridge lab 192.168.78.1/24'
    in_guest driver 'mkdir -p /etc/xen-virtio/guests'
    in_guest driver 'printf "[[net]]\nbridge = \"lab\"\n" >/etc/xen-virtio/guests/default.toml'
    in_guest driver start_daemon
}

# new_served NAME: a disk in the driver domain, and the xl configuration of a guest that obeys and
# has this disk and a network card. It grants its memory; with_mapping and with_debian_kernel change
# that.
new_served() {
    in_guest driver "noise \$(new_disk $1 16) 16"
    sed "s,target=[^\"]*,target=/run/disks/$1," /lab/guest.cfg >"$guests/$1.cfg"
    set_option "$1" "name = \"$1\""
    set_option "$1" 'ramdisk = "/guest/guest-net.cpio"'
    set_option "$1" 'memory = 256'
    set_option "$1" 'vcpus = 1'
    set_option "$1" 'on_crash = "destroy"'
    set_option "$1" "extra = \"console=hvc0 rdinit=/init quiet panic=-1 lab.case=$case lab.part=obey\""
    with_own_kernel "$1"
}

# with_mapping NAME: lets the driver domain map the guest's memory.
with_mapping() { sed -i 's/virtio_grants_guest_t/virtio_guest_t/; s/grant_usage=1/grant_usage=0/g' "$guests/$1.cfg"; }

# with_debian_kernel NAME: gives the guest a kernel that cannot grant its memory.
with_debian_kernel() { set_option "$1" 'kernel = "/guest/Image"'; }

# start_served NAME NUMBER: creates the guest, gives it the address of that number, and uses it.
start_served() {
    create "$1"
    expect "$1" obeying 60
    use_served "$@"
}

# use_served NAME NUMBER: the guest's disk has what was written on both sides, and the network leads
# both ways.
use_served() {
    in_guest "$1" 'need_disk vda; dd if=/dev/urandom of=/dev/vda bs=1M count=4 conv=fsync'
    [ "$(in_guest "$1" 'drop_caches; sum_of /dev/vda')" = "$(in_guest driver "sum_of /run/disks/$1")" ] ||
        fail "guest $1 reads something else than the driver domain"
    in_guest "$1" "[ -e /tmp/has-net ] || need_net eth0 192.168.78.$2/24; touch /tmp/has-net"
    in_guest "$1" 'ping -c 1 192.168.78.1'
    in_guest driver "ping -c 1 192.168.78.$2"
}

driver_has_logged() { tr -d '\r' <"$(console driver)" | grep -q "$1"; }

# The driver domain has no worker, no panic and no interface of a guest that has gone.
driver_has_nothing_left() {
    in_guest driver 'wait_until 15 no_workers'
    in_guest driver 'daemon_answers'
    # shellcheck disable=SC2016 # for the driver domain's shell
    in_guest driver '! grep -A 2 panicked $daemon_log'
    in_guest driver '! ls /sys/class/net | grep net0'
}

# Lines about what Xen's policy has refused since it was last asked.
denials() { xl dmesg -c | grep 'avc: *denied'; }
