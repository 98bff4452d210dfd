# One guest with every kind of device at once, each used: files and streams over a Linux bridge
# both ways, entropy, vsock both ways, a login on the console, a second port as a channel for
# data. Then a reboot and a destruction under load, which leave nothing behind.
# shellcheck shell=sh

dom0() {
    new_bridge lab 192.168.77.1/24 9000
    guest devices all "$(new_disk devices 8)"
    set_option devices 'on_reboot = "restart"'
    with_net_programs devices
    with_virtio devices 1 3 4 13
    entries devices <<END
[[net]]
bridge = "lab"
mac = "00:16:3e:77:00:02"
mtu = 9000

[[console]]
[[console.port]]
name = "data"
sink = "socket"

[[rng]]

[[vsock]]
END
    create devices
    expect devices obeying 60
    addresses_are_as_checked
    network
    entropy
    sockets
    log_in devices
    data_port
    counters

    # Not under load on the network: until Linux commit 0d0eff39ceb3 ("virtio_ring: fix infinite loop in
    # virtnet_poll_cleantx when device is broken") a guest that reboots while it sends may hang in itself.
    in_guest devices "load_disk"
    first=$(domid devices)
    tell devices "reboot -f"
    wait_until 120 is_gone "$first" || fail "domain $first is still there"
    wait_until 120 has_booted devices 2 || fail "the guest does not come back"
    iperf3 -s -D
    in_guest devices "load_network"
    check destroy devices
    leaves_nothing
}

# What `xen-virtio check` foretells is where the guest finds its devices.
addresses_are_as_checked() {
    xen-virtio check "$guests/devices.cfg" >/run/checked || fail "xen-virtio check: $(cat /run/checked)"
    in_guest devices 'device_addresses' >/run/found
    [ "$(wc -l </run/found)" -eq 5 ] || fail "the guest has other devices: $(cat /run/found)"
    while read -r address; do
        grep -q "$address" /run/checked || fail "xen-virtio check does not name $address: $(cat /run/checked)"
    done </run/found
}

network() {
    [ "$(in_guest devices 'cat /sys/class/net/eth0/mtu')" = 9000 ] || fail "the guest does not take the MTU"
    in_guest devices 'ping -c 3 -s 8000 192.168.77.1'
    ping -c 3 -s 20000 192.168.77.2 || fail "fragments do not arrive in the guest"

    iperf3 -s -D
    in_guest devices 'iperf3 -c 192.168.77.1 -n 4M'
    in_guest devices 'iperf3 -c 192.168.77.1 -n 8M --reverse'
    in_guest devices 'iperf3 -c 192.168.77.1 -n 512K --udp --length 1400 --bitrate 0'
    killall iperf3

    # Ten thousand small files, and a tenth of them back, which is the slower way.
    patience=400
    mkdir -p /run/files
    for file in $(seq 10000); do echo "$file $file $file" >"/run/files/$file"; done
    tar -c -C /run files | socat -u - TCP-LISTEN:4000 &
    in_guest devices 'socat -u TCP:192.168.77.1:4000,retry=50,interval=0.1 - | tar -x -C /tmp'
    [ "$(in_guest devices 'sum_of_files /tmp/files')" = "$(sum_of_files /run/files)" ] || fail "files changed on the way"
    mkdir -p /tmp/back
    socat -u TCP-LISTEN:4001 - | tar -x -C /tmp/back &
    receiver=$!
    in_guest devices 'cd /tmp/files && tar -c 1??? | socat -u - TCP:192.168.77.1:4001,retry=50,interval=0.1'
    wait "$receiver"
    find /run/files -type f ! -name '1???' -exec rm {} +
    diff -r /run/files /tmp/back >/run/differences || fail "files changed on the way back: $(head -n 3 /run/differences)"
    rm -rf /run/files /tmp/back
    patience=150
}

entropy() {
    case $(in_guest devices 'cat /sys/class/misc/hw_random/rng_current') in
    virtio_rng*) ;;
    *) fail "the guest does not take the entropy device" ;;
    esac
    # One block in 1,200 fails by chance.
    in_guest devices 'rngtest -c 20 </dev/hwrng 2>&1 | tee /tmp/rngtest; grep -q "failures: [0-2]$" /tmp/rngtest'
}

# A megabyte through an echo on the other side, both ways.
sockets() {
    vsock=/run/xen-virtio/vsock/devices.sock
    socat "UNIX-LISTEN:${vsock}_1234" EXEC:cat &
    in_guest devices 'echo_of "socat -t 60 - VSOCK-CONNECT:2:1234"'
    in_guest devices 'socat VSOCK-LISTEN:1235 EXEC:cat >/dev/null 2>&1 &'
    dd if=/dev/urandom of=/run/noise bs=64k count=16 2>/dev/null
    { echo "CONNECT 1235" && cat /run/noise; } | socat -t 60 - "UNIX-CONNECT:$vsock" >/run/echo
    head -n 1 /run/echo | grep -q '^OK [0-9]*$' || fail "no OK from the vsock: $(head -c 100 /run/echo)"
    tail -n +2 /run/echo | cmp - /run/noise || fail "the guest's echo differs"
}

data_port() {
    in_guest devices 'receive_on_port data 1048576 &'
    : >/run/answer
    send_on_port | socat - UNIX-CONNECT:/run/xen-virtio/consoles/devices/data.sock >/run/answer
    [ "$(cat /run/answer)" = "$(sum_of /run/noise)" ] || fail "the port brought something else: $(head -c 100 /run/answer)"
}

# Stays connected until the answer is there.
send_on_port() {
    cat /run/noise
    wait_until 60 test -s /run/answer
}

counters() {
    xen-virtio list
    for name in rx_packets tx_packets bytes_in bytes_out bytes_to_host bytes_to_guest bytes; do
        [ "$(counter "$name")" -gt 0 ] || fail "xen-virtio list counts no $name"
    done
}

leaves_nothing() {
    wait_until 15 no_workers || fail "the worker outlives its guest"
    [ ! -e /sys/class/net/devices-net0 ] || fail "the tap is left"
    left=$(find /run/xen-virtio -name '*devices*')
    [ -z "$left" ] || fail "left behind: $left"
}

guest_all() {
    need_disk vda
    need_net eth0 192.168.77.2/24 9000
    send_large_packets
    let_root_in
    guest_obey
}

load_disk() { while dd if=/dev/urandom of=/dev/vda bs=64k count=128 conv=notrunc,fsync; do :; done >/dev/null 2>&1 & }

load_network() { iperf3 -c 192.168.77.1 -t 1000 >/dev/null 2>&1 & }
