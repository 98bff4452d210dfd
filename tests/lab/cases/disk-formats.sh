# Disks whose images are no raw files: a qcow2 file above a base that it shares, and an export of an
# NBD server that is killed amid writes and started again. What the guest reads and writes is what
# qemu-img finds. A broken image costs its own guest that disk, and nobody else anything.
# shellcheck shell=sh

dom0() {
    patience=200
    noise "$(new_disk base 24)" 24
    base_sum=$(sum_of /run/disks/base)
    check qemu-img create -q -f qcow2 -b /run/disks/base -F raw /run/disks/top.qcow2 32M
    new_disk store 32
    export_store
    guest formats obey_with_disks
    with_fio formats
    with_virtio formats 2 2
    entries formats <<END
[[disk]]
image = "/run/disks/top.qcow2"
format = "qcow2"
backing = [{ image = "/run/disks/base" }]

[[disk]]
image = "nbd+unix:///store?socket=$(socket nbd)"
END
    create formats
    expect formats obeying 60
    layers
    server_comes_back
    broken_image
    xen-virtio list
    tell formats end
    finish formats
    end_all_backends
    image_is_sound
}

export_store() {
    new_backend nbd qemu-nbd --persistent --shared=8 --export-name=store --format=raw --socket="$(socket nbd)" /run/disks/store
}

# The base shows where the guest has not written.
layers() {
    all=$({ cat /run/disks/base && head -c 8388608 /dev/zero; } | sha256sum | cut -d ' ' -f 1)
    [ "$(in_guest formats 'sum_of /dev/vda')" = "$all" ] || fail "the guest reads something else than the base holds"
    in_guest formats 'start_fio vda'
    fio_ends_well formats
    in_guest formats 'dd if=/dev/urandom of=/dev/vda bs=64k count=100 seek=200 conv=fsync,notrunc 2>/dev/null'
    in_guest formats 'blkdiscard -o 25165824 -l 1048576 /dev/vda'
    in_guest formats 'drop_caches; sum_of /dev/vda' >/run/sum
    [ "$(sum_of /run/disks/base)" = "$base_sum" ] || fail "the base has changed"
}

server_comes_back() {
    in_guest formats 'start_fio vdb'
    fio_writes bytes_written disk1
    end_backend nbd KILL
    export_store
    fio_writes bytes_written disk1
    fio_ends_well formats
    [ "$(counter nbd_reconnects)" -gt 0 ] || fail "xen-virtio list counts no reconnect"
    [ "$(in_guest formats 'drop_caches; sum_of /dev/vdb')" = "$(sum_of /run/disks/store)" ] ||
        fail "the image holds something else than the guest reads"
}

broken_image() {
    cp /run/disks/top.qcow2 /run/disks/broken.qcow2
    # The table of the first level is far beyond the end.
    printf '\0\0\0\177\377\377\0\0' | dd of=/run/disks/broken.qcow2 bs=1 seek=40 conv=notrunc 2>/dev/null
    guest broken obey
    with_virtio broken 2
    entries broken <<END
[[disk]]
image = "/run/disks/broken.qcow2"
format = "qcow2"
backing = [{ image = "/run/disks/base" }]
END
    create broken
    expect broken obeying 60
    wait_until 20 grep -q 'broken.qcow2' "$daemon_log" || fail "the log does not name the broken image"
    in_guest broken '[ ! -e /dev/vda ]'
    check destroy broken
    [ "$(in_guest formats 'drop_caches; sum_of /dev/vda')" = "$(cat /run/sum)" ] || fail "another guest's disk has suffered"
}

# What qemu-img makes of it, now that nobody has it open.
image_is_sound() {
    check qemu-img check -q /run/disks/top.qcow2
    check qemu-img convert -O raw /run/disks/top.qcow2 /run/disks/converted
    [ "$(sum_of /run/disks/converted)" = "$(cat /run/sum)" ] || fail "qemu-img reads something else than the guest"
}

guest_obey_with_disks() {
    need_disk vdb
    guest_obey
}
