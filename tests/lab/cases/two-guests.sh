# Two guests at once, one with two disks; the first is there, waiting for its backend, when
# the daemon starts. No disk gets another's data.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by dom0/case
needs_daemon=no

dom0() {
    for disk in one-a one-b two-a; do noise "$(new_disk "$disk" 8)" 8; done
    guest one both /run/disks/one-a /run/disks/one-b
    guest two single /run/disks/two-a
    stop_daemon

    try_create one &
    creation=$!
    wait_until 20 disk_awaits_backend || fail "xl did not make the backend's directory"
    start_daemon
    create two
    wait "$creation" || fail "the guest that waited for the daemon was not created: $(tail -n 3 "$(xl_log one)")"
    xen-virtio list
    finish one
    finish two

    expect_sums one one-a one-b
    expect_sums two two-a
}

disk_awaits_backend() { xenstore-ls /local/domain/0/backend/virtio_disk 2>/dev/null | grep -q xvda; }

# expect_sums GUEST DISK...: what the guest read of its disks, in their order.
expect_sums() {
    sums_guest=$1
    shift
    sums=$(for disk in "$@"; do sum_of "/run/disks/$disk"; done)
    [ "$(said "$sums_guest" sum)" = "$sums" ] || fail "guest $sums_guest does not read its own disks"
}

guest_both() {
    need_disk vdb
    rewrite_first_half vda
    rewrite_first_half vdb
    say "sum $(sum_of /dev/vda)"
    say "sum $(sum_of /dev/vdb)"
}

guest_single() {
    need_disk vda
    rewrite_first_half vda
    say "sum $(sum_of /dev/vda)"
}

rewrite_first_half() {
    check dd if=/dev/urandom of="/dev/$1" bs=1M count=4 conv=fsync 2>/dev/null
    drop_caches
}
