# A guest works on two disks, one with a cache that it flushes and one without, while all that reaches the host is
# written down. Then their power is cut, thousands of times: what is left is a file system, with all in it that the
# guest had made durable. At last the same with devices that lie, all of which have to be found out.
# shellcheck shell=bash

# Different states of each disk. `make soak` asks for more.
states=${STATES:-5000}
seed=${SEED:-1}
# How often the guest does each of what it does.
rounds=${ROUNDS:-30}

# The disks by their numbers in the log; the guest speaks by the first.
disks=(voice cached through)

run_on_host() {
    local number lie
    log=$vmm_out/disks/power-cut.log
    rm -f "$log"
    record voice writeback 1
    record cached writeback 8
    record through writethrough 12
    boot older_qemu \
        -device vhost-user-blk-pci,chardev=voice,num-queues=2 \
        -device vhost-user-blk-pci,chardev=cached,num-queues=2 \
        -device vhost-user-blk-pci,chardev=through,num-queues=2
    # shellcheck disable=SC2016 # for the guest's shell
    in_guest 'for disk in vda vdb; do grep -qx "write back" /sys/block/$disk/queue/write_cache || exit 1; done'
    in_guest 'grep -qx "write through" /sys/block/vdc/queue/write_cache'
    patience=$((rounds * 20))
    in_guest ". /lab/cases/power-cut.sh && work $rounds"
    shut_down
    end_recording

    for number in 1 2; do
        replay "$number" --states "$states" --seed "$seed" --folder "$logs" ||
            fail "disk ${disks[number]}: $(tail -n 1 "$logs/case.log")"
    done
    for lie in flushes-nothing flushes-late flushes-most; do finds_out 1 "$lie"; done
    finds_out 2 stable-in-word
}

# record NAME CACHE MIB: a disk that is recorded.
record() {
    local name=$1 number
    for number in "${!disks[@]}"; do [[ ${disks[number]} != "$name" ]] || break; done
    "$vmm_programs/power-cut" record --socket "$(socket_of "$name")" --image "$(new_disk "power-cut-$name" "$3")" \
        --log "$log" --disk "$number" --cache "$2" >>"$logs/$name.log" 2>&1 &
    daemons["$name"]=$!
    wait_until 30 is_up_or_gone "$name"
    [[ -S $(socket_of "$name") ]] || fail "the recorder of $name did not come up: $(tail -n 3 "$logs/$name.log")"
}

# A recorder runs until it is killed.
end_recording() {
    local name
    for name in "${!daemons[@]}"; do
        is_gone "${daemons[$name]}" && fail "the recorder of $name is gone: $(tail -n 3 "$logs/$name.log")"
        kill "${daemons[$name]}"
        wait_until 30 is_gone "${daemons[$name]}" || fail "the recorder of $name does not stop"
    done
    daemons=()
}

# replay NUMBER OPTION...
replay() { "$vmm_programs/power-cut" replay --log "$log" --disk "$@"; }

# finds_out NUMBER LIE: a device that lies like this leaves states that are wrong.
finds_out() {
    local status=0
    replay "$1" --lie "$2" --states 1000 --folder "$logs/lies" || status=$?
    [[ $status -eq 2 ]] || fail "a device that $2 is not found out (exit code $status)"
}
