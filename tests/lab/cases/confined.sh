# Every worker is confined: the first one, with a disk, a network card, a console, entropy and sockets in
# use; the one that follows when it is killed; and the one after a reboot, which is another user. What Linux shows of each
# is what is looked at, and that its devices work nevertheless. Then a worker is taken over and tries what it must not do, one
# thing after the other: each is denied, and the guest does not notice.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by tests/lab/run
needs_taken_over=yes

dom0() {
    # shellcheck source=tests/lab/dom0/confined.sh
    . /lab/dom0/confined.sh
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
    is_confined confined
    devices_work confined

    kill -KILL "$worker"
    wait_until 30 is_followed || fail "no other worker follows: $(tail -n 3 "$daemon_log")"
    worker=$next
    is_confined confined
    devices_work confined

    first=$(domid confined)
    tell confined "reboot -f"
    wait_until 120 is_gone "$first" || fail "domain $first is still there"
    wait_until 120 has_booted confined 2 || fail "the guest does not come back"
    worker=$(worker_pids)
    is_confined confined
    devices_work confined

    for attempt in $(/lab/taken-over); do
        wait_until 30 has_workers 1 || fail "no worker follows: $(tail -n 3 "$daemon_log")"
        check /lab/taken-over "$(worker_pids)" "$attempt"
    done
    wait_until 30 has_workers 1 || fail "no worker follows: $(tail -n 3 "$daemon_log")"
    devices_work confined
    tell confined end
    finish confined

    not_confined_if_told_so
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
