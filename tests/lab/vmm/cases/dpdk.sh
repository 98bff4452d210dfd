# DPDK's network card over vhost-user, without hugepages: it answers the host's pings, then another
# one of it sends as fast as it can, and the tap counts.
# shellcheck shell=bash

pings=200
# Of the queues that DPDK sends by, together: what it has counted as sent and the device has not
# taken yet when it ends.
in_rings=512

run_on_host() {
    local sent arrived
    new_bridge lab 192.168.77.1/24
    serve net net tap=vmm0 bridge=lab queues=2

    start_testpmd icmpecho
    wait_until 60 ping -c 1 -W 1 192.168.77.3 || fail "DPDK does not answer: $(tail -n 5 "$logs/testpmd-icmpecho.log")"
    ping -q -c "$pings" -i 0.01 -s 1400 192.168.77.3 | tee /run/test-pings
    grep -q " $pings received" /run/test-pings || fail "pings were lost: $(grep received /run/test-pings)"
    stop_testpmd icmpecho
    [[ $(counted icmpecho RX) -gt $pings && $(counted icmpecho TX) -gt $pings ]] ||
        fail "DPDK counts $(counted icmpecho RX) in and $(counted icmpecho TX) out"

    before=$(tap_packets)
    start_testpmd txonly
    wait_until 60 has_sent 10000 || fail "DPDK sends nothing: $(tail -n 5 "$logs/testpmd-txonly.log")"
    stop_testpmd txonly
    sent=$(counted txonly TX)
    wait_until 30 has_sent $((sent - in_rings)) || fail "of $sent packets, $(($(tap_packets) - before)) came to the tap"
    arrived=$(($(tap_packets) - before))
    [[ $arrived -le $sent ]] || fail "$sent packets were sent, and $arrived came to the tap"
    echo "of $sent packets, $arrived came to the tap"
    stop_daemons
}

# start_testpmd MODE: it goes on until it is given a line.
start_testpmd() {
    local drivers=("$dpdk_sysroot"/usr/lib/*-linux-gnu/dpdk/pmds-*)
    rm -f /run/test-enter
    mkfifo /run/test-enter
    exec {enter}<>/run/test-enter
    in_sysroot "$dpdk_sysroot" dpdk-testpmd --no-huge --no-pci -m 256 \
        -d "${drivers[0]}/librte_net_virtio.so" -d "${drivers[0]}/librte_mempool_ring.so" \
        --vdev "net_virtio_user0,path=$(socket_of net),queues=2,mac=00:16:3e:77:00:03" \
        -- --rxq=2 --txq=2 --total-num-mbufs=8192 --forward-mode="$1" --auto-start \
        </run/test-enter >"$logs/testpmd-$1.log" 2>&1 &
    testpmd=$!
}

stop_testpmd() {
    local status=0
    echo >&"$enter"
    wait_until 30 is_gone "$testpmd" || fail "DPDK does not end"
    wait "$testpmd" || status=$?
    [[ $status -eq 0 ]] || fail "DPDK ended with $status: $(tail -n 5 "$logs/testpmd-$1.log")"
    rm -rf /run/dpdk
}

# counted MODE RX|TX: the packets of all ports together, as it says in the end.
counted() { grep -o "$2-packets: [0-9]*" "$logs/testpmd-$1.log" | awk 'END { print $2 }'; }

tap_packets() { cat /sys/class/net/vmm0/statistics/rx_packets; }
has_sent() { [[ $(($(tap_packets) - before)) -ge $1 ]]; }
