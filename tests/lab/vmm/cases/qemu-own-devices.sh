# Debian 12's QEMU, with the device that it has for each kind. The guest resets; then QEMU is killed
# while the guest writes, and another one finds the daemons as they were.
# shellcheck shell=bash

run_on_host() {
    new_bridge lab 192.168.77.1/24
    iperf3 -s >/run/test-iperf3 2>&1 &
    serve disk disk image="$(new_disk "$case" 128)" queues=2
    serve net net tap=vmm0 bridge=lab queues=2
    serve rng rng
    serve vsock vsock socket="$vsock"

    boot_with_all
    in_guest 'test -d /sys/block/vda/mq/1 && test -d /sys/class/net/eth0/queues/rx-1'
    use_all

    tell 'reboot -f'
    expect_boots 2
    use_all

    in_guest 'mount -t ext4 /dev/vda /mnt'
    in_guest "fio --name=endless --filename=/mnt/endless --size=8M $fio_writes --time_based --runtime=1000 >/dev/null 2>&1 &"
    in_guest 'wait_until 60 has_written vda 20000'
    kill -KILL "$machine"
    wait_until 30 is_gone "$machine"

    boot_with_all
    in_guest 'mount -t ext4 /dev/vda /mnt && cmp /mnt/busybox /bin/busybox && umount /mnt && e2fsck -fn /dev/vda'
    use_all
    shut_down
    stop_daemons
}

# QEMU 7 without KVM crashes over a network card of vhost-user that has MSI-X (vectors).
boot_with_all() {
    boot older_qemu \
        -device vhost-user-blk-pci,chardev=disk,num-queues=2 \
        -netdev vhost-user,id=net0,chardev=net,queues=2 \
        -device virtio-net-pci,netdev=net0,mq=on,vectors=0,mac=00:16:3e:77:00:02,romfile= \
        -device vhost-user-rng-pci,chardev=rng \
        -device vhost-user-vsock-pci,chardev=vsock
}

use_all() {
    use_disk
    use_network
    use_entropy
    use_sockets
}
