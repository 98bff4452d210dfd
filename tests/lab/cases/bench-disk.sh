# What `make bench-lab` counts of a disk; not one of the cases, though written like them.
# shellcheck shell=sh

# "NAME FIO-ARGUMENTS": what the guest's fio does.
workloads() { workloads_on vda; }

# workloads_on DISK [SUFFIX]
workloads_on() {
    cat <<END
randread-1$2 --rw=randread --bs=4k --iodepth=1 --filename=/dev/$1
randread-32$2 --rw=randread --bs=4k --iodepth=32 --filename=/dev/$1
randwrite-32$2 --rw=randwrite --bs=4k --iodepth=32 --filename=/dev/$1
read-1m$2 --rw=read --bs=1M --iodepth=4 --filename=/dev/$1
END
}

dom0() {
    noise "$(new_disk bench 64)" 64
    guest disk fio /run/disks/bench
    measure_guest disk
}

# measure_guest NAME [SUFFIX PROCESS]: measures all workloads in this guest. The names of the figures
# end with the suffix; the process is a backend beside the worker.
measure_guest() {
    measured=$1 suffix=$2 backend_process=$3
    with_fio "$measured"
    create "$measured"
    expect "$measured" ready 300
    worker=$(worker_pids)
    for name in $(workloads | cut -d ' ' -f 1); do
        measure_workload "$name"
    done
    memory | sed "s/^/@@ figures memory$suffix /"
    tell "$measured" end
    finish "$measured"
}

# measure_workload NAME: prints what the worker and Xen did in this workload, for each guest I/O: first
# undisturbed, then once more under strace, which would falsify the processor's time.
measure_workload() {
    expect "$measured" "ready $1 undisturbed" 300
    { snapshot && backend_snapshot; } >/run/before
    tell "$measured" go
    expect "$measured" "done $1 undisturbed" 300
    { snapshot && backend_snapshot; } >/run/after
    said "$measured" "result $1 undisturbed" >/run/undisturbed

    expect "$measured" "ready $1 traced" 300
    start_trace "$1$suffix"
    tell "$measured" go
    expect "$measured" "done $1 traced" 600
    stop_trace

    figure "$1$suffix" iops "$(cut -d ' ' -f 2 /run/undisturbed)"
    figures "$1$suffix" "$(cut -d ' ' -f 1 /run/undisturbed)"
    figure "$1$suffix" syscalls "$(traced_calls "$1$suffix" "$(said "$measured" "result $1 traced" | cut -d ' ' -f 1)")"
}

backend_snapshot() {
    if [ -n "$backend_process" ]; then
        echo "backend_cpu_us $(cpu_us "$backend_process")"
        echo "backend_switches $(switches "$backend_process")"
    fi
}

# The worker's own memory in KiB, and what it shares with a backend: how much that is, and how much
# of it has been touched.
memory() {
    awk '/^[0-9a-f]+-[0-9a-f]+ / { shared = /memfd:/ }
        $1 == "Anonymous:" { own += $2 }
        $1 == "Size:" && shared { size += $2 }
        $1 == "Rss:" && shared { touched += $2 }
        END { print "own_kib", own + 0; print "shared_kib", size + 0; print "touched_kib", touched + 0 }' "/proc/$worker/smaps"
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
    fio --name=bench --direct=1 --ioengine=libaio --time_based --runtime="$2" $1 \
        --output-format=terse --terse-version=3 --eta=never >/tmp/fio || fail "fio $1"
    bytes=$(echo "$1" | sed -n 's/.*bs=4k.*/4/p; s/.*bs=1M.*/1024/p')
    awk -F ';' -v kib="$bytes" '{ print ($6 + $47) / kib, $8 + $49 }' /tmp/fio
}
