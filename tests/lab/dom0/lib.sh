# What cases may use in Dom0. Sourced by dom0/case, with $case set to the case's name.
# shellcheck shell=sh

guests=/run/guests
consoles=/lab/logs/consoles
daemon_log=/lab/logs/xen-virtio.log
sockets=/run/backends
disk_spec="format=raw, access=rw, backendtype=standalone, specification=virtio"

# Copies from the build machine what guests are made of, and our program.
set_up() {
    mkdir -p /guest
    cp /lab/Image* /lab/*.cpio /guest/
    cp /lab/xen-virtio /usr/sbin/
}

# The first reason stands: what follows may follow from it.
fail() {
    [ -s "/run/$case.reason" ] || echo "$*" >"/run/$case.reason"
    exit 1
}

# Runs a command that must succeed; its words are the reason if it does not.
check() {
    "$@" || fail "this failed: $*"
}

# wait_until SECONDS COMMAND...: true as soon as the command is.
wait_until() {
    wait_end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$wait_end" ] || return 1
        sleep 0.2
    done
}

# shellcheck source=tests/lab/backend/lib.sh
. /lab/backend/lib.sh

# --- backends of others, which speak vhost-user ---

# new_backend NAME COMMAND...: starts a backend and waits until its socket is there.
new_backend() {
    mkdir -p "$sockets"
    backend=$1
    shift
    "$@" >>"/lab/logs/backend-$backend.log" 2>&1 &
    echo $! >"$sockets/$backend.pid"
    wait_until 20 test -S "$(socket "$backend")" ||
        fail "backend $backend does not listen: $(tail -n 3 "/lab/logs/backend-$backend.log")"
}

socket() { echo "$sockets/$1.sock"; }
backend_pid() { cat "$sockets/$1.pid"; }
backend_has_ended() { ! kill -0 "$(backend_pid "$1")" 2>/dev/null; }

# end_backend NAME [SIGNAL]: ends it, and what it leaves.
end_backend() {
    kill "-${2:-TERM}" "$(backend_pid "$1")" 2>/dev/null
    wait_until 20 backend_has_ended "$1" || fail "backend $1 does not end"
    rm -f "$(socket "$1")"
}

# new_shared_directory NAME DIRECTORY: by virtiofsd, with the tag "shared". By default it would shut
# itself in by pivot_root, which there is none of on an initramfs.
new_shared_directory() {
    new_backend "$1" virtiofsd --socket-path "$(socket "$1")" --tag shared --shared-dir "$2" --sandbox chroot
}

# new_foreign_disk NAME IMAGE: by qemu-storage-daemon.
new_foreign_disk() {
    new_backend "$1" qemu-storage-daemon --blockdev "driver=file,node-name=image,filename=$2,discard=unmap" \
        --export "type=vhost-user-blk,id=export,node-name=image,writable=on,addr.type=unix,addr.path=$(socket "$1")"
}

# new_foreign_entropy NAME: by vhost-device-rng, which counts its sockets.
new_foreign_entropy() {
    rm -f "$sockets/$1.sock0"
    ln -sf "$1.sock0" "$(socket "$1")"
    new_backend "$1" vhost-device-rng --socket-path "$(socket "$1")"
}

end_all_backends() {
    for backend in "$sockets"/*.pid; do
        [ ! -e "$backend" ] || kill -KILL "$(cat "$backend")" 2>/dev/null
    done
    rm -rf "$sockets"
}

# --- guests ---

# guest NAME PART [DISK...]: writes an xl configuration whose guest runs guest_PART of this
# case. A DISK is "path" or "path,access=ro". set_option changes it.
guest() {
    guest_name=$1 guest_part=$2
    shift 2
    mkdir -p "$guests"
    guest_disks='' guest_letter=a
    for guest_disk in "$@"; do
        guest_disks="$guest_disks'$disk_spec, vdev=xvd$guest_letter, target=$guest_disk', "
        guest_letter=$(echo "$guest_letter" | tr a-y b-z)
    done
    cat >"$guests/$guest_name.cfg" <<END
name = "$guest_name"
kernel = "/guest/Image"
ramdisk = "/guest/guest.cpio"
memory = 160
vcpus = 1
on_crash = "destroy"
# Left to its default, xl mem-set stumbles over it.
acpi = 0
extra = "console=hvc0 rdinit=/init quiet panic=-1 lab.case=$case lab.part=$guest_part"
disk = [ $guest_disks]
END
}

# with_fio NAME: gives the guest fio, and the memory for it.
with_fio() {
    set_option "$1" 'ramdisk = "/guest/guest-fio.cpio"'
    set_option "$1" 'memory = 512'
}

# with_net_programs NAME: gives the guest iperf3, socat and rngtest.
with_net_programs() {
    set_option "$1" 'ramdisk = "/guest/guest-net.cpio"'
    set_option "$1" 'memory = 256'
}

# with_all_programs NAME: gives the guest both.
with_all_programs() {
    set_option "$1" 'ramdisk = "/guest/guest-all.cpio"'
    set_option "$1" 'memory = 512'
}

# with_virtio NAME TYPE...: gives the guest virtio devices, by their type's hexadecimal number:
# 1 network, 2 disk, 3 console, 4 entropy, 13 vsock, 1a shared directory.
with_virtio() {
    virtio_guest=$1 virtio_list=''
    shift
    for virtio_type in "$@"; do
        virtio_list="$virtio_list'type=virtio,device$virtio_type,transport=mmio,grant_usage=0', "
    done
    set_option "$virtio_guest" "virtio = [ $virtio_list]"
}

# with_own_kernel NAME: gives the guest the lab's kernel, which can grant its pages, in place of
# Debian's.
with_own_kernel() { set_option "$1" 'kernel = "/guest/Image-own"'; }

# with_grants NAME: has the guest's devices, all of them, use grants.
with_grants() {
    sed -i "s/grant_usage=0/grant_usage=1/g; s/specification=virtio/&, grant_usage=1/g" "$guests/$1.cfg"
}

# entries NAME: the guest's configuration file, from standard input.
entries() {
    mkdir -p /etc/xen-virtio/guests
    cat >"/etc/xen-virtio/guests/$1.toml"
}

# set_option NAME "KEY = VALUE": sets an option of a guest's xl configuration.
set_option() {
    sed -i "/^${2%% *} =/d" "$guests/$1.cfg"
    echo "$2" >>"$guests/$1.cfg"
}

xl_log() { echo "/lab/logs/xl-$1.log"; }

try_create() { xl -vvv create "$guests/$1.cfg" >>"$(xl_log "$1")" 2>&1; }

create() { try_create "$1" || fail "xl create $1: $(grep error: "$(xl_log "$1")" | head -n 3)"; }

destroy() { xl destroy "$1" >>"$(xl_log "$1")" 2>&1; }

console() { echo "$consoles/guest-$1.log"; }

# A guest prints "@ WORDS" for what a case waits for.
has_said() { grep -qs "^@ $2" "$(console "$1")"; }
has_said_or_failed() { has_said "$@" || has_said "$1" "failed" || ! is_listed "$1"; }

# said NAME WORD: what a guest said after this word, each time it did.
said() { tr -d '\r' <"$(console "$1")" | sed -n "s/^@ $2 //p"; }

# expect NAME WORDS SECONDS: waits for a guest's words.
expect() {
    wait_until "$3" has_said_or_failed "$1" "$2"
    has_said "$1" "$2" && return
    fail "guest $1 did not say '$2': $(tail -n 3 "$(console "$1")" | tr -d '\r')"
}

# tell NAME WORDS: types a line on a guest's console.
tell() {
    tell_name=$1
    shift
    echo "$*" >"$(xenstore-read "/local/domain/$(domid "$tell_name")/console/tty")"
}

# ask NAME COMMAND...: runs a line of shell in a guest whose part is "obey" and prints what it
# says; false if it fails there. It may take as many seconds as patience says.
patience=150
ask() {
    ask_guest=$1 ask_before=$(answers "$1")
    shift
    tell "$ask_guest" "$*"
    wait_until "$patience" has_answered "$ask_guest" "$ask_before" || fail "guest $ask_guest does not end this: $*"
    tr -d '\r' <"$(console "$ask_guest")" |
        awk -v before="$ask_before" '/^@ answer / { n++ } /^@ output / && n == before { sub("@ output ", ""); print }'
    [ "$(said "$ask_guest" answer | tail -n +"$((ask_before + 1))")" = 0 ]
}

# boots NAME: how often guests of this name whose part is "obey" have come up.
boots() { grep -cs '^@ obeying' "$(console "$1")"; }
has_booted() { [ "$(boots "$1")" -ge "$2" ]; }

answers() { said "$1" answer | wc -l; }
has_answered() { [ "$(answers "$1")" -gt "$2" ] || is_gone "$1"; }

# in_guest NAME COMMAND...: asks for what must succeed.
in_guest() {
    in_guest_output=$(ask "$@") || fail "in guest $*: $(echo "$in_guest_output" | tail -n 3)"
    [ -z "$in_guest_output" ] || echo "$in_guest_output"
}

# log_in NAME: somebody does, from a terminal in Dom0, on the guest's virtio console: hvc1, beside Xen's
# own.
log_in() {
    in_guest "$1" 'setsid getty -L 115200 hvc1 vt100 >/dev/null 2>&1 &'
    rm -f /run/typed
    mkfifo /run/typed
    socat EXEC:"xen-virtio console $1",pty,setsid,ctty,sighup - </run/typed >/run/seen 2>&1 &
    terminal=$!
    exec 5>/run/typed
    wait_until 30 sees 'login:' || fail "no login on the console: $(cat /run/seen)"
    echo root >&5
    wait_until 30 sees '# ' || fail "no shell on the console: $(cat /run/seen)"
    # shellcheck disable=SC2016 # for the guest's shell
    echo 'echo seen $((6 * 7))' >&5
    wait_until 30 sees 'seen 42' || fail "no output on the console: $(cat /run/seen)"
    echo exit >&5
    # Ctrl-] ends xen-virtio console, and the guest's side stays.
    printf '\035' >&5
    wait_until 10 has_ended "$terminal" || fail "xen-virtio console does not end on Ctrl-]"
    exec 5>&-
}

# Whether another worker runs than $worker; it is $next.
is_followed() { next=$(worker_pids) && [ -n "$next" ] && [ "$next" != "$worker" ]; }

sees() { grep -q "$1" /run/seen; }
has_ended() { ! kill -0 "$1" 2>/dev/null; }

# fio_writes COUNTER DEVICE: waits until start_fio in a guest has moved a megabyte more, by this
# counter of bytes.
fio_writes() {
    fio_counter=$1 fio_device=$2 fio_before=$(counter "$1" "$2")
    wait_until 120 fio_has_written || fail "fio does not go on: $(xen-virtio list)"
}

fio_has_written() { [ "$(counter "$fio_counter" "$fio_device")" -gt $((fio_before + 1000000)) ]; }

# fio_ends_well GUEST: ends start_fio there, and looks whether it read all that it had written.
fio_ends_well() {
    in_guest "$1" 'touch /tmp/enough'
    wait_until 240 fio_has_ended "$1" || fail "fio does not end: $(xen-virtio list)"
    in_guest "$1" '[ -e /tmp/verified ] || { cat /tmp/fio && false; }'
}

fio_has_ended() { ask "$1" '[ -e /tmp/fio-ended ]'; }

# noticed_nothing GUEST: whether its kernel has seen nothing amiss with its devices; what it has said is among the logs.
noticed_nothing() {
    in_guest "$1" 'dmesg' >"/lab/logs/dmesg-$1.log"
    ! grep -iE 'i/o error|blocked for more|stall|hung|virtio.*(fail|broken|error)|reset|watchdog' "/lab/logs/dmesg-$1.log" >/run/noticed ||
        fail "the kernel of $1 noticed: $(cat /run/noticed)"
}

is_listed() { xl list "$1" >/dev/null 2>&1; }
is_gone() { ! is_listed "$1"; }

# finish NAME [SECONDS]: waits until a guest has done its part and is gone.
finish() {
    expect "$1" "done" "${2:-60}"
    wait_until 20 is_gone "$1" || fail "guest $1 does not go away"
}

# run_guest NAME PART [DISK...]: a guest from creation to its end.
run_guest() {
    guest "$@"
    create "$1"
    finish "$1"
}

domid() { xl domid "$1"; }

free_mib() { xl info free_memory | tr -d ' '; }

xen_has() { [ "$(free_mib)" -ge "$1" ]; }

# memory_is_back MIB: waits until Xen has as much memory free again as it had; some pages are what
# it has got to know of Dom0 meanwhile.
memory_is_back() {
    wait_until 10 xen_has "$(($1 - 2))" || fail "Xen has $(free_mib) MiB free, and had $1"
}

# Domains that have ended but are held by someone's mapping of their memory.
no_zombies() { ! xl list | grep -q '(null)\|--ps*d'; }
