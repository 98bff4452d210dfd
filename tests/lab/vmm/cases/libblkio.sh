# A disk without a guest: QEMU 11's tools, whose driver for disks over vhost-user is libblkio's. What
# they write is in the image, and what is in the image is what they read.
# shellcheck shell=bash

run_on_host() {
    local image file client
    image=$(new_disk "$case" 64)
    dd if=/dev/urandom of="$image" bs=1M count=32 conv=notrunc 2>/dev/null
    serve disk disk image="$image" queues=2
    # The daemon holds the image's locks.
    file="driver=file,filename=$image,locking=off"
    client="driver=virtio-blk-vhost-user,path=$(socket_of disk),cache.direct=on"

    for _ in 1 2; do
        (newer qemu-img compare --image-opts "$file" "$client")
        (newer qemu-io --image-opts "$client" -c 'write -P 0x5a 40M 4M' -c 'write -P 0xa5 41M 512' -c flush)
        (newer qemu-io --image-opts "$file" -c 'read -P 0xa5 41M 512' -c 'read -P 0x5a 42M 2M' | tee /run/test-read)
        if grep 'verification failed' /run/test-read; then fail "the image is not what was written"; fi
        (newer qemu-img bench -c 20000 -d 32 -s 4096 -S 65536 -o 0 -w --pattern 3 -t none --image-opts "$client")
        (newer qemu-io --image-opts "$client" -c 'write -z -u 40M 4M' -c 'discard 44M 4M' -c 'read -P 0 40M 8M') |
            tee /run/test-read
        if grep 'verification failed' /run/test-read; then fail "what was discarded is still there"; fi
        (newer qemu-img compare --image-opts "$file" "$client")
    done
    stop_daemons
}

newer() { in_sysroot "$newer_qemu_sysroot" "$@"; }
