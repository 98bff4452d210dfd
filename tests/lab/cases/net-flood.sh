# Dom0 floods a guest that takes no packets: its worker stays idle and small, and traffic resumes
# when the guest takes packets again.
# shellcheck shell=sh

# More than ring and tap queue hold together.
flood_packets=5000
# What the worker may do meanwhile that has nothing to do with packets. One that spins, or that
# each packet wakes, does thousands.
calls_allowed=50

dom0() {
    new_bridge lab 192.168.77.1/24
    guest flood wired
    with_virtio flood 1
    entries flood <<END
[[net]]
bridge = "lab"
END
    create flood
    expect flood obeying 60
    reaches 192.168.77.2 || fail "the guest cannot be reached"
    # Dom0 goes on sending to the address that it knows.
    arp -i lab -s 192.168.77.2 "$(in_guest flood 'cat /sys/class/net/eth0/address')"
    in_guest flood 'ip link set eth0 down'

    worker=$(worker_pids)
    memory=$(resident_kib)
    # This fills ring and tap queue; nothing of the next one finds room.
    flood
    start_trace flood
    flood
    stop_trace
    calls=$(traced_calls flood)
    echo "$calls system calls of the worker in $flood_packets packets that nobody takes"
    [ "$calls" -le "$calls_allowed" ] || fail "the worker made $calls system calls in $flood_packets packets that nobody takes"
    [ "$(resident_kib)" -lt $((memory + 4096)) ] || fail "the worker grew from $memory to $(resident_kib) KiB"

    in_guest flood 'ip link set eth0 up'
    reaches 192.168.77.2 || fail "the guest cannot be reached again"
    tell flood end
    finish flood
}

flood() { socat -u -b 1400 "OPEN:/dev/zero,readbytes=$((flood_packets * 1400))" UDP-SENDTO:192.168.77.2:9; }
resident_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$worker/status"; }

guest_wired() {
    need_net eth0 192.168.77.2/24
    guest_obey
}
