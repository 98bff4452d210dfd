# A second daemon is refused in words, and the first goes on.
# shellcheck shell=sh

dom0() {
    first=$(daemon_pid)
    xen-virtio serve >/run/second 2>&1
    status=$?
    [ "$status" -eq 2 ] || fail "the second daemon ended with exit code $status, not 2: $(cat /run/second)"
    grep -q 'runs already' /run/second || fail "the second daemon does not say why it ends: $(cat /run/second)"
    [ "$(daemon_pid)" = "$first" ] || fail "the first daemon is another process now"
    run_guest after look "$(new_disk after 1)"
}

guest_look() { need_disk vda; }
