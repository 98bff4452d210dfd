# What `make bench-lab` counts of a network interface: ours, and Xen's own of the same guest. Not
# one of the cases, though written like them.
# shellcheck shell=sh

mib=128

dom0() {
    guest net both
    with_virtio net 1
    entries net <<END
[[net]]
bridge = "lab"
mac = "00:16:3e:77:00:02"
END
    begin_networks net
    measure_networks xen-virtio:02 PV:03
    end_networks
}

# begin_networks NAME: starts this guest, with an interface of Xen's own besides, on a new bridge.
begin_networks() {
    net_guest=$1
    modprobe xen-netback
    new_bridge lab 192.168.77.1/24
    with_net_programs "$1"
    set_option "$1" "vif = [ 'mac=00:16:3e:77:00:03,bridge=lab,script=/lab/dom0/vif-script' ]"
    create "$1"
    expect "$1" obeying 60
    worker=$(worker_pids)
    iperf3 -s -D
    in_guest "$1" 'iperf3 -s -D'
}

# measure_networks BACKEND:ADDRESS...: both directions of each interface, by the last two digits of
# its address.
measure_networks() {
    for backend in "$@"; do
        in_guest "$net_guest" "use 00:16:3e:77:00:${backend#*:}"
        measure_stream "to-dom0-${backend%:*}" to_dom0
        measure_stream "from-dom0-${backend%:*}" from_dom0
    done
}

end_networks() {
    tell "$net_guest" end
    finish "$net_guest"
    remove_bridges
}

# measure_stream NAME DIRECTION: prints what a MiB of TCP costs: first undisturbed, then, if a worker
# of ours serves it, once more under strace.
measure_stream() {
    transfer 16 "$2" >/dev/null
    { snapshot && interrupts; } >/run/before
    speed=$(transfer "$mib" "$2")
    { snapshot && interrupts; } >/run/after
    figure "$1" mbits "$speed"
    figures "$1" "$mib"
    case $1 in *-PV) return ;; esac
    start_trace "$1"
    transfer "$mib" "$2" >/dev/null
    stop_trace
    figure "$1" all_syscalls "$(traced_calls "$1" "$mib")"
}

# transfer MIB DIRECTION: prints the megabits a second. Who sends is iperf3's client: its server
# ends a reverse test late, and the speed would be too low.
transfer() { "$2" "iperf3 -f m -n ${1}M -c" | awk '/receiver$/ { print $7 }'; }

to_dom0() { in_guest "$net_guest" "$1 192.168.77.1"; }
from_dom0() { $1 192.168.77.2; }

# What both sides' kernels took: the guest's interrupts of either interface, and those of Dom0
# that Xen's own backend is notified by.
interrupts() {
    echo "guest_interrupts $(in_guest "$net_guest" cat /proc/interrupts | grep 'virtio\|vif' | awk '{ n += $2 } END { print n + 0 }')"
    echo "backend_interrupts $(grep vif /proc/interrupts | awk '{ n += $2 } END { print n + 0 }')"
}

guest_both() { guest_obey; }

# use MAC: the interface with this address gets ours, the others go down.
use() {
    for interface in /sys/class/net/eth*; do
        name=${interface##*/}
        ip address flush dev "$name"
        ip link set "$name" down
        if [ "$(cat "$interface/address")" = "$1" ]; then need_net "$name" 192.168.77.2/24; fi
    done
    wait_until 20 ping -c 1 -W 1 192.168.77.1
}
