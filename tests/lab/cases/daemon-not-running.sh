# Without the daemon `xl create` fails and Dom0 stays well; the daemon started afterwards
# serves the next guest.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by dom0/case
needs_daemon=no

dom0() {
    guest first idle "$(new_disk first 1)"
    if try_create first; then fail "xl create succeeded though nothing serves its disk"; fi
    grep -q 'unable to add disk devices\|timed out' "$(xl_log first)" ||
        fail "xl create failed for another reason: $(tail -n 3 "$(xl_log first)")"
    is_gone first || fail "the guest that was not created is still there"
    xen-virtio list 2>&1 | grep -q 'does not run' || fail "xen-virtio list does not say that no daemon runs"

    start_daemon
    run_guest second idle "$(new_disk second 1)"
}

guest_idle() {
    need_disk vda
}
