# What cases may use where xen-virtio serves, in Dom0 or in a driver domain. Sourced after what has
# fail, check and wait_until, with $daemon_log set to where its words go.
# shellcheck shell=sh

# --- the daemon ---

# What `serve` is started with.
serve_options=

start_daemon() {
    # shellcheck disable=SC2086 # words
    xen-virtio serve $serve_options >>"$daemon_log" 2>&1 &
    wait_until 10 daemon_answers_or_ended
    daemon_answers || fail "xen-virtio serve did not come up: $(tail -n 3 "$daemon_log")"
}

daemon_answers_or_ended() { daemon_answers || ! kill -0 "$!"; }

# Stops the daemon, if it runs; what its workers serve goes on being served.
stop_daemon() {
    daemon_answers || return 0
    kill "$(daemon_pid)"
    wait_until 20 no_daemon || fail "xen-virtio serve does not stop"
}

# restart_daemon [OPTION...]: with these.
restart_daemon() {
    serve_options=$*
    stop_daemon
    start_daemon
}

no_daemon() { [ -z "$(daemon_pid)" ]; }

daemon_answers() { xen-virtio list >/dev/null 2>&1; }

daemon_pid() { processes serve; }

worker_pids() { processes worker; }

# processes COMMAND: the ids of those that run `xen-virtio COMMAND`.
processes() {
    for pid in $(pidof xen-virtio); do
        if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "^[^ ]*xen-virtio $1 "; then echo "$pid"; fi
    done
}

no_workers() { has_workers 0; }
has_workers() { [ "$(worker_pids | wc -l)" -eq "$1" ]; }

daemon_fds() { ls "/proc/$(daemon_pid)/fd" | wc -l; }

# start_trace NAME ... stop_trace: counts the system calls of the worker, whose id is in $worker,
# between. They cost it several times the time then.
start_trace() {
    strace -c -f -o "/lab/logs/strace-$1.txt" -p "$worker" 2>/dev/null &
    trace=$!
    wait_until 20 is_traced || fail "strace does not attach to the worker"
}

stop_trace() {
    kill -INT "$trace"
    wait "$trace"
}

is_traced() { ! grep -q '^TracerPid:[[:space:]]*0$' "/proc/$worker"/task/*/status; }

# traced_calls NAME [UNITS]: all system calls between, per unit.
traced_calls() { awk -v units="${2:-1}" '$NF == "total" { n = $4 } END { print n / units }' "/lab/logs/strace-$1.txt"; }

# counter NAME [DEVICE]: the sum of this counter over all guests and devices, or over the devices
# of this name.
counter() {
    xen-virtio list --json | tr -d '",:' |
        awk -v counter="$1" -v device="$2" '$1 == "name" { name = $2 } $1 == counter && (device == "" || name == device) { n += $2 } END { print n + 0 }'
}

has_written_since() { [ "$(counter bytes_written)" -gt "$1" ]; }

# --- disks ---

# new_disk NAME MIB: an image of zeroes; prints its path.
new_disk() {
    mkdir -p /run/disks
    truncate -s "${2}M" "/run/disks/$1"
    echo "/run/disks/$1"
}

# noise FILE MIB [SEEK_MIB]: writes random bytes into an image.
noise() { dd if=/dev/urandom of="$1" bs=1M count="$2" seek="${3:-0}" conv=notrunc 2>/dev/null; }

# sum_of FILE: its checksum.
sum_of() { sha256sum "$1" | cut -d ' ' -f 1; }

# sum_of_files DIRECTORY: one checksum of all names and contents; in a guest, too.
sum_of_files() { (cd "$1" && find . -type f | sort | xargs sha256sum | sha256sum); }

# --- networks ---

# new_bridge NAME ADDRESS/BITS [MTU]: a bridge on which we have an address. Its hardware address is
# its own: else it would be that of some guest's tap, and change when this goes.
new_bridge() {
    [ ! -e /proc/modules ] || modprobe bridge
    check brctl addbr "$1"
    check ip link set "$1" address 02:00:00:00:00:01
    check ip link set "$1" mtu "${3:-1500}"
    check ip address add "$2" dev "$1"
    check ip link set "$1" up
}

# reaches ADDRESS: whether it answers within half a minute. A single ping may be lost to an
# address that Dom0 has just given up resolving, for something else that it had to send there.
reaches() { wait_until 30 ping -c 1 -W 2 "$1"; }

remove_bridges() {
    for bridge in /sys/class/net/*/bridge; do
        [ -d "$bridge" ] || continue
        bridge=$(basename "$(dirname "$bridge")")
        ip link set "$bridge" down && brctl delbr "$bridge"
    done
}
