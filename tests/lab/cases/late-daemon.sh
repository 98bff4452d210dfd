# libxl does not wait for the devices of virtio=[...]: a guest is created paused, and goes on when
# `xen-virtio wait` says that its devices are there. One that was not waited for is told of.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by dom0/case
needs_daemon=no

dom0() {
    guest patient look
    with_virtio patient 4
    stop_daemon
    check xl create -p "$guests/patient.cfg"
    start_daemon
    check timeout 30 xen-virtio wait patient
    check xl unpause patient
    finish patient

    guest hasty look
    with_virtio hasty 4
    stop_daemon
    check xl create "$guests/hasty.cfg"
    # Its driver finds nothing at the address, and faults.
    expect hasty "failed" 60
    start_daemon
    check destroy hasty
    wait_until 20 grep -q 'xl create -p' "$daemon_log" || fail "the log does not say what to do: $(tail -n 5 "$daemon_log")"
}

guest_look() {
    wait_until 10 grep -q virtio_rng /sys/class/misc/hw_random/rng_current || fail "the entropy device is not in use"
    check dd if=/dev/hwrng of=/dev/null bs=512 count=4
}
