# One guest with three devices whose backends are others' programs, unmodified, in Dom0: a
# directory of virtiofsd, a disk of qemu-storage-daemon, entropy of vhost-device-rng. What goes
# through them arrives whole both ways, also when the disk's backend is killed under it and started
# again.
# shellcheck shell=sh

directories=20
files_each=100

dom0() {
    make_tree
    new_shared_directory directory /run/shared
    new_foreign_disk disk "$(new_disk foreign 64)"
    new_foreign_entropy entropy
    guest foreign all
    with_all_programs foreign
    with_virtio foreign 1a 2 4
    entries foreign <<END
[[vhost-user]]
device = "fs"
socket = "$(socket directory)"

[[vhost-user]]
device = "block"
socket = "$(socket disk)"

[[vhost-user]]
device = "rng"
socket = "$(socket entropy)"
END
    create foreign
    expect foreign obeying 60
    shared_directory
    entropy
    disk
    disk_without_backend
    xen-virtio list
    tell foreign end
    finish foreign
    # Its front-end has gone, and so it goes.
    wait_until 20 backend_has_ended directory || fail "virtiofsd outlives its guest"
    end_all_backends
}

# Thousands of small files, and some large ones.
make_tree() {
    mkdir -p /run/shared/tree
    for directory in $(seq "$directories"); do
        mkdir "/run/shared/tree/$directory"
        for file in $(seq "$files_each"); do
            echo "$directory $file" >"/run/shared/tree/$directory/$file"
        done
    done
    for file in 1 2 3; do noise "/run/shared/tree/large-$file" 16; done
}

shared_directory() {
    patience=300
    in_guest foreign 'mount -t virtiofs shared /mnt'
    [ "$(in_guest foreign 'sum_of_files /mnt/tree')" = "$(sum_of_files /run/shared/tree)" ] ||
        fail "the guest reads other files than Dom0 wrote"
    in_guest foreign 'write_files /mnt/back'
    [ "$(in_guest foreign 'sum_of_files /mnt/back')" = "$(sum_of_files /run/shared/back)" ] ||
        fail "Dom0 reads other files than the guest wrote"
    in_guest foreign 'rm /mnt/tree/1/* && rmdir /mnt/tree/1'
    [ ! -e /run/shared/tree/1 ] || fail "what the guest removed is still there"
    in_guest foreign 'umount /mnt'
    patience=150
}

entropy() {
    case $(in_guest foreign 'cat /sys/class/misc/hw_random/rng_current') in
    virtio_rng*) ;;
    *) fail "the guest does not take the entropy device" ;;
    esac
    # One block in 1,200 fails by chance.
    in_guest foreign 'rngtest -c 20 </dev/hwrng 2>&1 | tee /tmp/rngtest; grep -q "failures: [0-2]$" /tmp/rngtest'
}

disk() {
    in_guest foreign 'start_fio vda'
    fio_ends_well foreign
    # The backend's image is the guest's disk.
    [ "$(in_guest foreign 'sum_of /dev/vda')" = "$(sum_of /run/disks/foreign)" ] || fail "the image is not what the guest reads"
}

# Killed amid writes, gone for a while, and started again.
disk_without_backend() {
    in_guest foreign 'start_fio vda'
    fio_writes bytes_in block0
    end_backend disk KILL
    new_foreign_disk disk /run/disks/foreign
    fio_writes bytes_in block0
    fio_ends_well foreign
    [ "$(counter reconnects block0)" -eq 1 ] || fail "another number of reconnects: $(xen-virtio list)"
}

guest_all() {
    need_disk vda
    guest_obey
}

# write_files DIRECTORY: small files in great number and large ones, some of them changed later.
write_files() {
    mkdir "$1"
    for file in $(seq 200); do echo "guest $file" >"$1/$file"; done
    dd if=/dev/urandom of="$1/large" bs=1M count=16 2>/dev/null
    dd if=/dev/urandom of="$1/large" bs=4k count=16 seek=1000 conv=notrunc 2>/dev/null
    cp "$1/large" "$1/copy"
    truncate -s 5000000 "$1/copy"
    mv "$1/200" "$1/renamed"
    rm "$1/199"
    sync
}
