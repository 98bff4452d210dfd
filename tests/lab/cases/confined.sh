# Every worker is confined: the first one, with a disk, a network card, a console, entropy and sockets in
# use; the one that follows when it is killed; and the one after a reboot, which is another user. What Linux shows of each
# is what is looked at, and that its devices work nevertheless. Then a worker is taken over and tries what it must not do, one
# thing after the other: each is denied, and the guest does not notice.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by tests/lab/run
needs_taken_over=yes

dom0() {
    # As many ends of a worker as we want in any minute, and no device is given up.
    restart_daemon --restarts 1000
    new_bridge lab 192.168.77.1/24
    guest confined all "$(new_disk confined 8)"
    set_option confined 'on_reboot = "restart"'
    with_net_programs confined
    with_virtio confined 1 3 4 13
    entries confined <<END
[[net]]
bridge = "lab"

[[console]]
sink = "pty"

[[vsock]]

[[rng]]
END
    create confined
    expect confined obeying 60
    worker=$(worker_pids)
    is_confined
    devices_work

    kill -KILL "$worker"
    wait_until 30 is_followed || fail "no other worker follows: $(tail -n 3 "$daemon_log")"
    worker=$next
    is_confined
    devices_work

    first=$(domid confined)
    tell confined "reboot -f"
    wait_until 120 is_gone "$first" || fail "domain $first is still there"
    wait_until 120 has_booted confined 2 || fail "the guest does not come back"
    worker=$(worker_pids)
    is_confined
    devices_work

    for attempt in $(/lab/taken-over); do
        wait_until 30 has_workers 1 || fail "no worker follows: $(tail -n 3 "$daemon_log")"
        check /lab/taken-over "$(worker_pids)" "$attempt"
    done
    wait_until 30 has_workers 1 || fail "no worker follows: $(tail -n 3 "$daemon_log")"
    devices_work
    tell confined end
    finish confined

    not_confined_if_told_so
}

is_followed() { next=$(worker_pids) && [ -n "$next" ] && [ "$next" != "$worker" ]; }

# By /proc, of the process $worker.
is_confined() {
    user=$((0x78760000 + $(domid confined)))
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
    # What is open is a device of Xen's, a device's end on the host, or has no name at all.
    ls -l "/proc/$worker/fd" | sed -n 's/.* -> //p' | sort | uniq -c >"/lab/logs/confined-fds.log"
    ! grep -vE ' (socket:\[|anon_inode:|/memfd:|(/dev)?/null|/dev/(xen/(privcmd|evtchn|gntdev)|net/tun|pts/ptmx|ptmx)|/run/disks/confined|/lab/logs/xen-virtio.log|pipe:\[)' /lab/logs/confined-fds.log >/run/more ||
        fail "the worker has more open: $(cat /run/more)"
}

# shows FIELD VALUE: of /proc/PID/status, with single spaces.
shows() {
    shown=$(sed -n "s/^$1:[[:space:]]*//p" "/proc/$worker/status" | tr -s '[:space:]' ' ' | sed 's/ *$//')
    [ "$shown" = "$2" ] || fail "the worker's $1 is '$shown', not '$2'"
}

devices_work() {
    in_guest confined 'dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null'
    [ "$(in_guest confined 'drop_caches; sum_of /dev/vda')" = "$(sum_of /run/disks/confined)" ] || fail "the guest reads something else than the image holds"
    reaches 192.168.77.2 || fail "the guest does not answer a ping"
    [ "$(in_guest confined 'dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c')" -eq 256 ] || fail "no entropy"
    vsock=/run/xen-virtio/vsock/confined.sock
    rm -f "${vsock}_1234"
    socat "UNIX-LISTEN:${vsock}_1234" EXEC:cat &
    in_guest confined 'echo_of "socat -t 60 - VSOCK-CONNECT:2:1234"'
}

# For debugging, and never in silence.
not_confined_if_told_so() {
    restart_daemon --no-sandbox
    grep -q 'WORKERS ARE NOT CONFINED' "$daemon_log" || fail "serve --no-sandbox does not warn"
    guest open obey "$(new_disk open 8)"
    create open
    expect open obeying 60
    worker=$(worker_pids)
    shows Uid "0 0 0 0"
    shows Seccomp 0
    grep -q 'This worker is not confined' "$daemon_log" || fail "its worker does not warn"
    xen-virtio list | grep -q 'WORKERS ARE NOT CONFINED' || fail "list does not warn: $(xen-virtio list)"
    tell open end
    finish open
    restart_daemon
}

guest_all() {
    need_disk vda
    need_net eth0 192.168.77.2/24
    let_root_in
    guest_obey
}
