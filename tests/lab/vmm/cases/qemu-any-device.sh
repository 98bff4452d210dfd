# QEMU 11's device for any kind, which leaves to the daemon what its own devices do themselves: what
# the device offers, its configuration space, the network card's control queue. It is the one that
# can have a console.
# shellcheck shell=bash

run_on_host() {
    new_bridge lab 192.168.77.1/24
    iperf3 -s >/run/test-iperf3 2>&1 &
    serve disk disk image="$(new_disk "$case" 128)" queues=2 serial=vhost-user
    serve net net tap=vmm0 bridge=lab queues=2 mac=00:16:3e:77:00:02 mtu=1400
    serve console console path=/run/terminal 'port=[{name="data", sink="socket", path="/run/data"}]'
    serve rng rng
    serve vsock vsock socket="$vsock" cid=7

    # Queues: of the card, two pairs and the control queue; of the console, a pair for each port
    # and one for control. Their size is as large as QEMU's own card has them: Linux leaves half of
    # a small queue empty, and the rest cannot take a packet of 64 KiB.
    boot newer_qemu \
        -device "$any_device,chardev=disk,vq_size=256,virtio-id=2,num_vqs=2,config_size=60" \
        -device "$any_device,chardev=net,vq_size=256,virtio-id=1,num_vqs=5,config_size=12" \
        -device "$any_device,chardev=console,virtio-id=3,num_vqs=6,config_size=12" \
        -device "$any_device,chardev=rng,virtio-id=4,num_vqs=1" \
        -device "$any_device,chardev=vsock,virtio-id=19,num_vqs=3,config_size=8"
    in_guest 'grep -x vhost-user /sys/block/vda/serial'
    in_guest 'grep -x 00:16:3e:77:00:02 /sys/class/net/eth0/address && grep -x 1400 /sys/class/net/eth0/mtu'
    use_disk
    use_network
    use_control_queue
    use_entropy
    use_sockets
    log_in
    use_data_port
    shut_down
    stop_daemons
}

any_device=vhost-user-test-device-pci

# With one pair of queues switched off, packets have to come by the other; with both they may come
# by either.
use_control_queue() {
    in_guest 'ethtool -L eth0 combined 1'
    ping -c 20 -i 0.1 192.168.77.2
    in_guest 'ethtool -L eth0 combined 2'
    in_guest 'iperf3 -c 192.168.77.1 -n 8M --parallel 4 --reverse'
}

# Somebody logs in on the console from a terminal on the host.
log_in() {
    in_guest 'mkdir -p /root && echo root::0:0:root:/root:/bin/sh >/etc/passwd'
    in_guest 'setsid getty -L 115200 hvc0 vt100 >/dev/null 2>&1 &'
    mkfifo /run/test-keys
    exec {keys}<>/run/test-keys
    socat - /run/terminal,raw,echo=0 </run/test-keys >/run/test-seen 2>&1 &
    wait_until 60 sees 'login:' || fail "no login on the console: $(cat /run/test-seen)"
    echo root >&"$keys"
    wait_until 60 sees '# ' || fail "no shell on the console: $(cat /run/test-seen)"
    # shellcheck disable=SC2016 # for the guest's shell
    echo 'echo seen $((6 * 7))' >&"$keys"
    wait_until 60 sees 'seen 42' || fail "no output on the console: $(cat /run/test-seen)"
}

sees() { grep -aq "$1" /run/test-seen; }

# A megabyte through a port, and its checksum back.
use_data_port() {
    in_guest 'receive_on_port data 1048576 &'
    : >/run/test-answer
    send_on_port | socat - UNIX-CONNECT:/run/data >/run/test-answer
    [[ $(cat /run/test-answer) == "$(sha256sum /run/test-noise | cut -d ' ' -f 1)" ]] ||
        fail "the port brought something else: $(head -c 100 /run/test-answer)"
}

# Stays connected until the answer is there.
send_on_port() {
    cat /run/test-noise
    wait_until 60 test -s /run/test-answer
}
