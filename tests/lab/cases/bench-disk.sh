# What `make bench-lab` counts; not one of the cases, though written like them.
# shellcheck shell=sh

# "NAME FIO-ARGUMENTS": what the guest's fio does.
workloads() {
    cat <<END
randread-1 --rw=randread --bs=4k --iodepth=1
randread-32 --rw=randread --bs=4k --iodepth=32
randwrite-32 --rw=randwrite --bs=4k --iodepth=32
read-1m --rw=read --bs=1M --iodepth=4
END
}

dom0() {
    guest bench fio "$(new_disk bench 64)"
    noise /run/disks/bench 64
    with_fio bench
    create bench
    worker=$(worker_pids)
    for name in $(workloads | cut -d ' ' -f 1); do
        measure "$name"
    done
    tell bench end
    finish bench
}

# measure NAME: prints what the worker and Xen did in this workload, for each guest I/O: first
# undisturbed, then once more under strace, which would falsify the processor's time.
measure() {
    expect bench "ready $1 undisturbed" 300
    snapshot >/run/before
    tell bench go
    expect bench "done $1 undisturbed" 300
    snapshot >/run/after
    said bench "result $1 undisturbed" >/run/undisturbed
    ios=$(cut -d ' ' -f 1 /run/undisturbed)

    expect bench "ready $1 traced" 300
    trace "$1" &
    trace=$!
    sleep 1
    tell bench go
    expect bench "done $1 traced" 600
    kill -INT "$(pidof strace)"
    wait "$trace"
    traced_ios=$(said bench "result $1 traced" | cut -d ' ' -f 1)

    echo "@@ figures $1 iops $(cut -d ' ' -f 2 /run/undisturbed)"
    awk -v ios="$ios" 'NR == FNR { before[$1] = $2; next } { print $1, ($2 - before[$1]) / ios }' /run/before /run/after |
        sed "s/^/@@ figures $1 /"
    awk -v ios="$traced_ios" '$NF == "total" { print "syscalls", $4 / ios }' "/lab/logs/strace-$1.txt" |
        sed "s/^/@@ figures $1 /"
}

trace() { strace -c -f -o "/lab/logs/strace-$1.txt" -p "$worker" 2>/dev/null; }

# Counters by name: ours, and the worker's processor time in ns.
snapshot() {
    xen-virtio list --json | sed -n 's/^ *"\([a-z_]*\)": \([0-9]*\),*$/\1 \2/p'
    echo "cpu_us $(cat "/proc/$worker"/task/*/schedstat | awk '{ n += $1 } END { printf "%.0f", n / 1000 }')"
}

guest_fio() {
    need_disk vda
    workloads | while read -r name arguments; do
        # Maps what the workload touches.
        run_fio "$arguments" 1 >/dev/null
        for how in undisturbed traced; do
            say "ready $name $how"
            read -r _ </dev/console
            result=$(run_fio "$arguments" 2)
            say "result $name $how $result"
            say "done $name $how"
        done
    done
    read -r _ </dev/console
}

# run_fio ARGUMENTS SECONDS: prints the I/Os done and those per second.
run_fio() {
    # shellcheck disable=SC2086 # arguments are words
    fio --name=bench --filename=/dev/vda --direct=1 --ioengine=libaio --time_based --runtime="$2" $1 \
        --output-format=terse --terse-version=3 --eta=never >/tmp/fio || fail "fio $1"
    bytes=$(echo "$1" | sed -n 's/.*bs=4k.*/4/p; s/.*bs=1M.*/1024/p')
    awk -F ';' -v kib="$bytes" '{ print ($6 + $47) / kib, $8 + $49 }' /tmp/fio
}
