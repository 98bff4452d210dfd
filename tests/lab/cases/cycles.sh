# Guests with every kind of device come and go: destroyed before they run, while they boot, amid
# I/O, after a reboot that was asked of them, after a crash that leaves them to be looked at, and
# while they shut down or their worker is being killed, each at a random moment. However often, the
# broker has as many descriptors and mappings as before, and it takes as much memory, and Xen has as
# much. `make soak` has 200 of them.
# shellcheck shell=sh

ends="paused booting busy rebooted crashed ending"

# Of the guests that come first: what they make the broker and Dom0 keep, is kept once.
warm_up=6

dom0() {
    cycles=${CYCLES:-6}
    # shellcheck disable=SC3028 # busybox has it, and takes a seed
    RANDOM=${SEED:-1}
    new_bridge lab 192.168.77.1/24
    new_disk cycles 16 >/dev/null
    some_cycles 1 "$warm_up"
    take_stock
    some_cycles "$((warm_up + 1))" "$((warm_up + cycles))"
    compare_stock
}

some_cycles() {
    for cycle in $(seq "$1" "$2"); do
        one_cycle "$(echo "$ends" | cut -d ' ' -f "$((cycle % 6 + 1))")"
    done
}

# one_cycle END
one_cycle() {
    name=cycle$cycle
    new_guest
    # A kernel that panics asks for a reboot, on Arm.
    if [ "$1" = crashed ]; then set_option "$name" 'on_reboot = "preserve"'; fi
    case $1 in
    paused) check xl create -p "$guests/$name.cfg" >>"$(xl_log "$name")" 2>&1 ;;
    booting) create "$name" ;;
    *) create "$name" && expect "$name" busy 60 ;;
    esac
    a_while
    case $1 in
    rebooted)
        first=$(domid "$name")
        check xl reboot "$name"
        wait_until 60 is_another || fail "$name does not come back: $(xl list)"
        a_while
        ;;
    crashed)
        check xl sysrq "$name" c
        wait_until 60 has_crashed || fail "$name does not crash: $(xl list)"
        a_while
        ;;
    ending) begin_to_end ;;
    esac
    # One that shuts down may be gone by now. And its own xl may be destroying it: for that, or as it does not come to be anew.
    destroy "$name" || wait_until 20 is_gone "$name" || fail "$name, which was $1, cannot be destroyed: $(xl list)"
    wait_until 20 no_workers || fail "the worker outlives $name, which was $1: $(worker_pids)"
    wait_until 10 no_zombies || fail "$name, which was $1, cannot die: $(xl list)"
    is_gone "$name" || fail "$name, which was $1, is back: $(xl list)"
}

new_guest() {
    guest "$name" busy /run/disks/cycles
    set_option "$name" 'on_reboot = "restart"'
    with_virtio "$name" 1 3 4 13
    entries "$name" <<END
[[net]]
bridge = "lab"

[[console]]

[[rng]]

[[vsock]]
END
}

# Up to two seconds.
# shellcheck disable=SC3028
a_while() { sleep "$((RANDOM % 2)).$((RANDOM % 10))"; }

# The guest begins to shut down, or somebody kills its worker soon, maybe while xl destroys it, or both.
# shellcheck disable=SC3028
begin_to_end() {
    ending=$((RANDOM % 3)) kill_after=$((RANDOM % 3)).$((RANDOM % 10)) worker=$(worker_pids)
    [ "$ending" -eq 0 ] || check xl shutdown "$name"
    [ "$ending" -eq 1 ] || { sleep "$kill_after" && kill -KILL "$worker"; } &
    sleep "$((RANDOM % 3)).$((RANDOM % 10))"
}

is_another() { now=$(domid "$name" 2>/dev/null) && [ "$now" != "$first" ]; }

has_crashed() { xl list "$name" | grep -q -- '---s'; }

take_stock() {
    descriptors=$(daemon_fds)
    mappings=$(daemon_mappings)
    resident=$(daemon_resident)
    memory=$(free_mib)
    files=$(find /run/xen-virtio | sort)
    echo "after $warm_up guests: $descriptors descriptors, $mappings mappings, $resident KiB of its own; Xen has $memory MiB"
}

compare_stock() {
    echo "$cycles guests later: $(daemon_fds) descriptors, $(daemon_mappings) mappings, $(daemon_resident) KiB of its own; Xen has $(free_mib) MiB"
    # What a device leaves is taken away beside the broker's loop.
    wait_until 30 has_what_it_had ||
        fail "the broker has $(daemon_fds) descriptors and $(daemon_mappings) mappings, and had $descriptors and $mappings: $(ls -l "/proc/$(daemon_pid)/fd")"
    [ "$(daemon_resident)" -le "$((resident + 512))" ] || fail "the broker takes $(daemon_resident) KiB, and took $resident"
    wait_until 10 xen_has "$memory" || fail "Xen has $(free_mib) MiB free, and had $memory"
    [ "$(find /run/xen-virtio | sort)" = "$files" ] || fail "left behind: $(find /run/xen-virtio)"
    [ "$(xl list | wc -l)" -eq 2 ] || fail "domains are left: $(xl list)"
    [ -z "$(ls -d /sys/class/net/cycle* 2>/dev/null)" ] || fail "taps are left: $(ls /sys/class/net)"
}

has_what_it_had() { [ "$(daemon_fds)" -eq "$descriptors" ] && [ "$(daemon_mappings)" -eq "$mappings" ]; }

# Of files and devices. How malloc cuts up its own shows in the resident memory, if it matters.
daemon_mappings() { awk '$5 != 0' "/proc/$(daemon_pid)/maps" | wc -l; }

# Without pages of its program, of which it uses more when something happens to it for the first time.
daemon_resident() { awk '$1 == "RssAnon:" { print $2 }' "/proc/$(daemon_pid)/status"; }

guest_busy() {
    need_disk vda
    need_net eth0 192.168.77.2/24
    echo 1 >/proc/sys/kernel/sysrq
    # What `xl reboot` and `xl shutdown` come to. Not while it sends: until Linux commit 0d0eff39ceb3 that may hang a
    # guest in itself.
    trap 'ip link set eth0 down; reboot -f' TERM
    trap 'ip link set eth0 down; poweroff -f' USR2
    for load in write flood draw; do $load >/dev/null 2>&1 & done
    say "busy"
    wait
    while :; do sleep 1; done
}

write() { while :; do dd if=/dev/zero of=/dev/vda bs=256k count=64 oflag=direct; done; }

flood() { ping -A -s 1000 192.168.77.1; }

draw() { cat /dev/hwrng; }
