# Dom0 floods a guest that takes no packets: its worker stays idle and small, and traffic resumes
# when the guest takes packets again.
# shellcheck shell=sh

flood_seconds=5

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
    before=$(cpu_ms)
    timeout "$flood_seconds" socat -u -b 1400 OPEN:/dev/zero UDP-SENDTO:192.168.77.2:9
    spent=$(($(cpu_ms) - before))
    [ "$spent" -lt $((flood_seconds * 100)) ] || fail "the worker ran for $spent ms in $flood_seconds s of packets that nobody takes"
    [ "$(resident_kib)" -lt $((memory + 4096)) ] || fail "the worker grew from $memory to $(resident_kib) KiB"

    in_guest flood 'ip link set eth0 up'
    reaches 192.168.77.2 || fail "the guest cannot be reached again"
    tell flood end
    finish flood
}

cpu_ms() { cat "/proc/$worker"/task/*/schedstat | awk '{ n += $1 } END { printf "%.0f", n / 1000000 }'; }
resident_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$worker/status"; }

guest_wired() {
    need_net eth0 192.168.77.2/24
    guest_obey
}
