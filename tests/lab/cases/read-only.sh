# A guest cannot write to a disk that its configuration says it may only read.
# shellcheck shell=sh

dom0() {
    image=$(new_disk read-only 4)
    noise "$image" 4
    before=$(sum_of "$image")
    disk_spec=$(echo "$disk_spec" | sed 's/access=rw/access=ro/')
    run_guest read-only "try" "$image"
    [ "$(sum_of "$image")" = "$before" ] || fail "the image has changed"
    [ "$(said read-only sum)" = "$before" ] || fail "the guest read something else than the image holds"
}

guest_try() {
    need_disk vda
    [ "$(cat /sys/block/vda/ro)" = 1 ] || fail "the disk does not say that it is read-only"
    if dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null; then fail "a write succeeded"; fi
    # What a driver would send that ignores what the device says.

    say "sum $(sum_of /dev/vda)"
}
