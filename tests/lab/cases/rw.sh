# What the guest writes is in the image, and what is in the image is what the guest reads.
# shellcheck shell=sh

dom0() {
    image=$(new_disk rw 24)
    noise "$image" 8
    lower_half=$(dd if="$image" bs=1M count=8 2>/dev/null | sha256sum)

    run_guest rw write "$image"

    read_by_guest=$(said rw read)
    written_by_guest=$(said rw wrote)
    [ "$read_by_guest" = "$lower_half" ] || fail "the guest read something else than the image holds"
    in_image=$(dd if="$image" bs=1M skip=8 count=8 2>/dev/null | sha256sum)
    [ "$written_by_guest" = "$in_image" ] || fail "the image holds something else than the guest wrote"
}

guest_write() {
    need_disk vda
    say "read $(dd if=/dev/vda bs=1M count=8 2>/dev/null | sha256sum)"
    dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 2>/dev/null
    check dd if=/tmp/pattern of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null
    say "wrote $(sha256sum </tmp/pattern)"
    drop_caches
    dd if=/dev/vda bs=1M skip=8 count=8 2>/dev/null | check cmp - /tmp/pattern
}
