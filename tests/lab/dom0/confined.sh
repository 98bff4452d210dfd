# What cases may use that look at how workers are confined, and whether their devices work all the same. Sourced by
# those cases in Dom0.
# shellcheck shell=sh

# is_confined GUEST: by /proc, of the process $worker, which serves it.
is_confined() {
    user=$((0x78760000 + $(domid "$1")))
    shows Uid "$user $user $user $user"
    shows Gid "$user $user $user $user"
    shows Groups ""
    for set in CapInh CapPrm CapEff CapBnd CapAmb; do shows "$set" 0000000000000000; done
    shows NoNewPrivs 1
    for thread in "/proc/$worker/task"/*; do
        grep -q '^Seccomp:[[:space:]]*2$' "$thread/status" || fail "a thread has no filter: $(cat "$thread/comm")"
    done
    for kind in mnt net pid ipc uts; do
        [ "$(readlink "/proc/$worker/ns/$kind")" != "$(readlink "/proc/1/ns/$kind")" ] || fail "the worker has Dom0's $kind namespace"
    done
    [ -z "$(ls -A "/proc/$worker/root/")" ] || fail "the worker sees files: $(ls -A "/proc/$worker/root/")"
    [ "$(wc -l <"/proc/$worker/mountinfo")" -le 2 ] || fail "the worker has mounts: $(cat "/proc/$worker/mountinfo")"
    ! touch "/proc/$worker/root/file" 2>/dev/null || fail "the worker's root can be written to"
    [ "$(wc -l <"/proc/$worker/net/dev")" -eq 3 ] || fail "the worker has networks: $(cat "/proc/$worker/net/dev")"
    # What is open is a device of Xen's, a device's end on the host, or has no name at all. Mounts of a namespace that has ended
    # are missing in the names.
    ls -l "/proc/$worker/fd" | sed -n 's/.* -> //p' | sort | uniq -c >"/lab/logs/confined-fds.log"
    ! grep -vE ' (socket:\[|anon_inode:|/memfd:|(/dev)?/(null|xen/(privcmd|evtchn|gntdev)|net/tun|pts/ptmx|ptmx|loop)|(/run)?/disks/|/lab/logs/xen-virtio.log|pipe:\[)' /lab/logs/confined-fds.log >/run/more ||
        fail "the worker has more open: $(cat /run/more)"
}

# shows FIELD VALUE: of /proc/PID/status, with single spaces.
shows() {
    shown=$(sed -n "s/^$1:[[:space:]]*//p" "/proc/$worker/status" | tr -s '[:space:]' ' ' | sed 's/ *$//')
    [ "$shown" = "$2" ] || fail "the worker's $1 is '$shown', not '$2'"
}

# devices_work GUEST: its disk /run/disks/GUEST, network card, entropy and sockets.
devices_work() {
    in_guest "$1" 'dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null'
    [ "$(in_guest "$1" 'drop_caches; sum_of /dev/vda')" = "$(sum_of "/run/disks/$1")" ] || fail "the guest reads something else than the image holds"
    reaches 192.168.77.2 || fail "the guest does not answer a ping"
    [ "$(in_guest "$1" 'dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c')" -eq 256 ] || fail "no entropy"
    # In a disk's place it has that one's number in its name.
    vsock=$(ls "/run/xen-virtio/vsock/$1"*.sock)
    rm -f "${vsock}_1234"
    socat "UNIX-LISTEN:${vsock}_1234" EXEC:cat &
    in_guest "$1" 'echo_of "socat -t 60 - VSOCK-CONNECT:2:1234"'
}
