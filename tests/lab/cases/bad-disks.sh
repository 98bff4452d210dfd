# A disk that cannot be served makes `xl create` fail at once, and our log says why in words.
# shellcheck shell=sh

dom0() {
    # libxl looks at the file before it asks us.
    refuse missing /run/disks/missing
    refuse directory /run

    # From here it is for us to refuse.
    mkdir -p /etc/xen-virtio/guests
    new_disk ok 1 >/dev/null
    echo 'disks = 1' >/etc/xen-virtio/guests/bad-config.toml
    refuse bad-config /run/disks/ok
    grep 'bad-config.toml:1' "$daemon_log" >/dev/null || fail "the log does not name the wrong line: $(tail -n 3 "$daemon_log")"
    : >/run/disks/empty
    refuse empty /run/disks/empty
    grep '/run/disks/empty' "$daemon_log" >/dev/null || fail "the log does not name the empty image: $(tail -n 3 "$daemon_log")"
    check mount -o bind /run/disks /mnt
    check mount -o remount,bind,ro /mnt
    refuse no-writing /mnt/ok
    grep '/mnt/ok' "$daemon_log" >/dev/null || fail "the log does not name the image that cannot be opened: $(tail -n 3 "$daemon_log")"
    check umount /mnt

    run_guest fine look /run/disks/ok
}

# refuse NAME PATH: a guest with this disk must not be created, and libxl must not wait in
# vain for its backend.
refuse() {
    guest "$1" look "$2"
    if try_create "$1"; then fail "a guest was created with the disk $2"; fi
    is_gone "$1" || fail "the guest that was not created is still there"
    ! grep -q 'timed out' "$(xl_log "$1")" || fail "xl waited for its time-out with the disk $2"
}

guest_look() { need_disk vda; }
