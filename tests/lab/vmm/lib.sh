# What the cases without Xen may use. Sourced by `case`, with $case and $logs set.
# shellcheck shell=bash

# The first reason stands: what follows may follow from it.
fail() {
    [[ -s $logs/reason ]] || echo "$*" >"$logs/reason"
    exit 1
}

# wait_until SECONDS COMMAND...: true as soon as the command is.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [[ $SECONDS -lt $end ]] || return 1
        sleep 0.1
    done
}

is_gone() { ! kill -0 "$1" 2>/dev/null; }

# --- daemons ---

declare -A daemons=()

# The socket of the daemon of this name.
socket_of() { echo "/run/$1.sock"; }

# serve NAME KIND KEY=VALUE...: starts a daemon and waits until clients can connect.
serve() {
    local name=$1 kind=$2
    "$vmm_programs/virtio-$kind" vhost-user --socket "$(socket_of "$name")" --run /run "${@:3}" \
        >>"$logs/$name.log" 2>&1 &
    daemons[$name]=$!
    wait_until 30 is_up_or_gone "$name"
    [[ -S $(socket_of "$name") ]] || fail "virtio-$kind did not come up: $(tail -n 3 "$logs/$name.log")"
}

is_up_or_gone() { [[ -S $(socket_of "$1") ]] || is_gone "${daemons[$1]}"; }

# Stops all daemons as a service manager does, and expects that nothing of them is left.
stop_daemons() {
    local name status
    for name in "${!daemons[@]}"; do
        is_gone "${daemons[$name]}" && fail "daemon $name is gone: $(tail -n 3 "$logs/$name.log")"
        kill "${daemons[$name]}"
        wait_until 30 is_gone "${daemons[$name]}" || fail "daemon $name does not stop"
        status=0
        wait "${daemons[$name]}" || status=$?
        [[ $status -eq 0 ]] || fail "daemon $name ended with $status: $(tail -n 3 "$logs/$name.log")"
        if grep -i panicked "$logs/$name.log"; then fail "daemon $name panicked"; fi
    done
    daemons=()
    leaves_nothing
}

# What a case makes itself is called test-SOMETHING. A directory may be shared by several daemons, so it
# stays.
leaves_nothing() {
    local left
    left=$(find /run -mindepth 1 ! -type d ! -name 'test-*')
    [[ -z $left ]] || fail "left behind: $left"
    left=$(ip -oneline link show type tun)
    [[ -z $left ]] || fail "left behind: $left"
    left=$(pgrep -a '^(xen-|)virtio' || true)
    [[ -z $left ]] || fail "left behind: $left"
}

# new_disk NAME MIB: an image of zeroes; prints its path. On a file system that images are on.
new_disk() {
    mkdir -p "$vmm_out/disks"
    rm -f "$vmm_out/disks/$1"
    truncate -s "${2}M" "$vmm_out/disks/$1"
    echo "$vmm_out/disks/$1"
}

# new_bridge NAME ADDRESS/BITS: a bridge on which the host has an address.
new_bridge() {
    ip link add name "$1" type bridge
    ip address add "$2" dev "$1"
    ip link set "$1" up
}

# --- programs out of sysroots ---

# in_sysroot SYSROOT PROGRAM ARGUMENT...: runs a program of another Debian, with its libraries, in
# place of this shell.
in_sysroot() {
    local root=$1 program=$2 libraries loader
    libraries=$(compgen -G "$root/usr/lib/*-linux-gnu")
    loader=$(find "$root" -name 'ld-linux*.so.*' -print -quit)
    QEMU_MODULE_DIR=$libraries/qemu exec "$loader" \
        --library-path "${loader%/*}:$libraries:$libraries/dpdk/pmds-23.0" "$root/usr/bin/$program" "${@:3}"
}

older_qemu() { exec qemu-system-aarch64 "$@"; }
newer_qemu() { in_sysroot "$newer_qemu_sysroot" qemu-system-aarch64 -L "$newer_qemu_sysroot/usr/share/qemu" "$@"; }

# --- guests ---

boots=0

# boot QEMU OPTION...: boots a guest with these devices, and waits until it obeys. For each daemon
# there is a chardev of its name.
boot() {
    local qemu=$1 name chardevs=()
    shift
    for name in "${!daemons[@]}"; do
        chardevs+=(-chardev "socket,id=$name,path=$(socket_of "$name")")
    done
    boots=$((boots + 1))
    console=$logs/console-$boots.log
    rm -f /run/test-typed
    mkfifo /run/test-typed
    exec {typed}<>/run/test-typed
    : >"$console"
    # vhost-user wants memory that can be shared.
    "$qemu" -nodefaults -display none -serial stdio \
        -machine virt,gic-version=3,memory-backend=memory -cpu cortex-a57 -smp 2 -m 512M \
        -object memory-backend-memfd,id=memory,size=512M,share=on \
        -kernel "$kernel_image" -initrd "$vmm_initramfs" \
        -append "console=ttyAMA0 rdinit=/init quiet panic=-1 lab.case=guest lab.part=obey" \
        "${chardevs[@]}" "$@" </run/test-typed >>"$console" 2>"$logs/qemu-$boots.log" &
    machine=$!
    expect_boots 1
}

# Waits until the machine has come up so many times.
expect_boots() {
    wait_until 120 has_booted_or_failed "$1" || true
    has_booted "$1" || fail "the guest does not come up: $(tail -n 3 "$console" "$logs/qemu-$boots.log" | tr -d '\r')"
}

has_booted() { [[ $(grep -c '^@ obeying' "$console") -ge $1 ]]; }
has_booted_or_failed() { has_booted "$1" || grep -q '^@ failed' "$console" || is_gone "$machine"; }

# ask COMMAND...: runs a line of shell in the guest and prints what it says; false if it fails
# there. It may take as many seconds as patience says.
patience=120
ask() {
    local before
    before=$(answers)
    tell "$*"
    wait_until "$patience" has_answered "$before" || fail "the guest does not end this: $*"
    tr -d '\r' <"$console" |
        awk -v before="$before" '/^@ answer / { n++ } /^@ output / && n == before { sub("@ output ", ""); print }'
    [[ $(tr -d '\r' <"$console" | sed -n 's/^@ answer //p' | tail -n 1) == 0 ]]
}

answers() { grep -c '^@ answer' "$console" || true; }
has_answered() { [[ $(answers) -gt $1 ]] || is_gone "$machine"; }

# Types a line on the guest's console.
tell() { echo "$*" >&"$typed"; }

# in_guest COMMAND...: asks for what must succeed.
in_guest() {
    local output
    output=$(ask "$@") || fail "in the guest, $*: $(tail -n 3 <<<"$output")"
    [[ -z $output ]] || echo "$output"
}

# Ends the guest as the guest does it.
shut_down() {
    tell end
    wait_until 60 is_gone "$machine" || fail "the guest does not shut down"
}
