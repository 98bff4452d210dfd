# A driver domain that may not map its guests' memory serves one that grants it what each request
# needs. Guests that do not play along, one whose kernel cannot grant and one that is told not to,
# get nothing of their devices, in words; the backend and the other guest live on.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by dom0/case
needs_daemon=no
# shellcheck disable=SC2034 # read by tests/lab/run
needs_own_kernel=yes

dom0() {
    # shellcheck source=tests/lab/dom0/driver-domain.sh
    . /lab/dom0/driver-domain.sh
    memory=$(free_mib)
    start_driver
    denials
    new_served good
    start_served good 11
    refused=$(denials)
    [ -z "$refused" ] || fail "Xen's policy refuses what a guest that plays along needs: $refused"

    new_served old
    with_debian_kernel old
    create old
    expect old obeying 60
    in_guest old load_disk_driver
    wait_until 60 driver_has_logged "guest $(domid old): .*uses grants only" || fail "the log does not say that the guest grants nothing"
    refused=$(denials)
    [ -z "$refused" ] || fail "something else than grants was tried: $refused"

    new_served stubborn
    sed -i 's/grant_usage=1/grant_usage=0/g' "$guests/stubborn.cfg"
    create stubborn
    wait_until 60 driver_has_logged "guest $(domid stubborn): .*Xen does not let this domain map the guest's memory" ||
        fail "the log does not say that Xen refused to map the guest's memory"
    denials | grep -q 'map_read.*virtio_grants_guest_t' || fail "it was not Xen's policy that refused"

    use_served good 11
    for guest in old stubborn good; do check destroy "$guest"; done
    driver_has_nothing_left
    check destroy driver
    memory_is_back "$memory"
}

# A kernel that does not know the device's grants waits ten seconds for who does, and goes on
# without. The driver then waits for ever for a disk that has stopped.
load_disk_driver() {
    wait_until 30 test -e /sys/bus/virtio/devices/virtio0 || fail "the guest's kernel leaves the device alone"
    modprobe virtio_blk &
}
