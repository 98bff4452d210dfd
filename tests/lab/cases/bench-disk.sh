# What `make bench-lab` counts of a disk; not one of the cases, though written like them.
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
    guest disk fio "$(new_disk bench 64)"
    noise /run/disks/bench 64
    with_fio disk
    create disk
    worker=$(worker_pids)
    for name in $(workloads | cut -d ' ' -f 1); do
        measure "$name"
    done
    tell disk end
    finish disk
}

# measure NAME: prints what the worker and Xen did in this workload, for each guest I/O: first
# undisturbed, then once more under strace, which would falsify the processor's time.
measure() {
    expect disk "ready $1 undisturbed" 300
    snapshot >/run/before
    tell disk go
    expect disk "done $1 undisturbed" 300
    snapshot >/run/after
    said disk "result $1 undisturbed" >/run/undisturbed

    expect disk "ready $1 traced" 300
    start_trace "$1"
    tell disk go
    expect disk "done $1 traced" 600
    stop_trace

    figure "$1" iops "$(cut -d ' ' -f 2 /run/undisturbed)"
    figures "$1" "$(cut -d ' ' -f 1 /run/undisturbed)"
    figure "$1" syscalls "$(traced_calls "$1" "$(said disk "result $1 traced" | cut -d ' ' -f 1)")"
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
