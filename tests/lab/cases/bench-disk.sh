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

# The same image, by this program, by Xen's own backend, and by another revision's program.
dom0() {
    noise "$(new_disk bench 64)" 64
    guest disk fio /run/disks/bench
    measure_guest disk
    measure_pv
    if [ -e /lab/base/xen-virtio ]; then measure_base; fi
}

# Xen's blkback in Dom0's kernel, on a loop device, and blkfront in the guest.
measure_pv() {
    modprobe -a loop xen-blkback
    check losetup /dev/loop0 /run/disks/bench
    guest pv fio_on_pv
    set_option pv "disk = [ 'format=raw, vdev=xvda, access=rw, backendtype=phy, script=/lab/dom0/block-script, target=/dev/loop0' ]"
    measure_guest pv -PV
    losetup -d /dev/loop0
}

# Its daemon serves in place of ours meanwhile. What it runs of is a copy, as programs are slow to
# load from the share.
measure_base() {
    stop_daemon
    (
        mkdir -p /run/base
        cp /lab/base/xen-virtio /run/base/
        PATH=/run/base:$PATH
        start_daemon
        guest base fio /run/disks/bench
        measure_guest base -base
        stop_daemon
    ) || exit
    start_daemon
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
    [ -z "$worker" ] || memory | sed "s/^/@@ figures memory$suffix /"
    tell "$measured" end
    finish "$measured"
}

# measure_workload NAME: prints what the worker and Xen did in this workload, for each guest I/O: first
# undisturbed, then, if there is a worker, once more under strace, which would falsify the
# processor's time.
measure_workload() {
    expect "$measured" "ready $1 undisturbed" 300
    { snapshot && backend_snapshot; } >/run/before
    tell "$measured" go
    expect "$measured" "done $1 undisturbed" 300
    { snapshot && backend_snapshot; } >/run/after
    said "$measured" "result $1 undisturbed" >/run/undisturbed
    figure "$1$suffix" iops "$(cut -d ' ' -f 2 /run/undisturbed)"
    figures "$1$suffix" "$(cut -d ' ' -f 1 /run/undisturbed)"
    figure "$1$suffix" guest_interrupts "$(cut -d ' ' -f 3 /run/undisturbed)"

    expect "$measured" "ready $1 traced" 300
    if [ -z "$worker" ]; then
        tell "$measured" skip
        return
    fi
    start_trace "$1$suffix"
    tell "$measured" go
    expect "$measured" "done $1 traced" 600
    stop_trace
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

# Xen's own disk goes by the name of ours.
guest_fio_on_pv() {
    need_disk xvda
    ln -s xvda /dev/vda
    guest_fio
}

guest_fio() {
    need_disk vda
    workloads | while read -r name arguments; do
        # Maps what the workload touches.
        run_fio "$arguments" 300ms >/dev/null
        run_when_told "$name undisturbed" "$arguments" 1s
        run_when_told "$name traced" "$arguments" 300ms
    done
    read -r _ </dev/console
}

# run_when_told NAME ARGUMENTS TIME: runs fio and says what came out, or skips it.
run_when_told() {
    say "ready $1"
    read -r answer </dev/console
    [ "$answer" = go ] || return 0
    result=$(run_fio "$2" "$3")
    say "result $1 $result"
    say "done $1"
}

# run_fio ARGUMENTS TIME: prints the I/Os done, those per second, and the disks' interrupts for each.
run_fio() {
    interrupts_before=$(disk_interrupts)
    # shellcheck disable=SC2086 # arguments are words
    fio --name=bench --direct=1 --ioengine=libaio --time_based --runtime="$2" $1 \
        --output-format=terse --terse-version=3 --eta=never >/tmp/fio || fail "fio $1"
    bytes=$(echo "$1" | sed -n 's/.*bs=4k.*/4/p; s/.*bs=1M.*/1024/p')
    awk -F ';' -v kib="$bytes" -v interrupts="$(($(disk_interrupts) - interrupts_before))" \
        '{ done = ($6 + $47) / kib; print done, $8 + $49, interrupts / done }' /tmp/fio
}

disk_interrupts() { awk '/virtio|blkif/ { n += $2 } END { print n + 0 }' /proc/interrupts; }
