# A guest whose devices a file describes, without anybody who answers libxl: created paused, its
# domain id written into the file, served, and unpaused.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by dom0/case
needs_daemon=no

dom0() {
    new_bridge lab 192.168.77.1/24
    noise "$(new_disk static 4)" 4
    guest static use
    with_virtio static 2 1 4 3
    stop_daemon
    check xl create -p "$guests/static.cfg"
    cat >/run/static.toml <<END
[[guest]]
domid = $(domid static)
name = "static"

[[guest.disk]]
base = 0x2000000
irq = 33
image = "/run/disks/static"

[[guest.net]]
base = 0x2000200
irq = 34
bridge = "lab"

[[guest.rng]]
base = 0x2000400
irq = 35

[[guest.console]]
base = 0x2000600
irq = 36
sink = "file"
path = "/run/static-console"
END
    xen-virtio serve --static /run/static.toml >>"$daemon_log" 2>&1 &
    wait_until 20 is_served || fail "xen-virtio serve --static does not serve the guest: $(tail -n 5 "$daemon_log")"
    check xl unpause static
    expect static "done" 60
    [ "$(said static sum)" = "$(sum_of /run/disks/static)" ] || fail "the guest reads something else than the image holds"
    grep -q 'printed by the guest' /run/static-console || fail "the console's file lacks the guest's words"
    # libxl asks devices to close, and gives up on each.
    wait_until 60 is_gone static || fail "the guest does not go away"
    wait_until 20 no_workers || fail "the worker outlives its guest"
    kill "$(daemon_pid)"
    wait_until 20 no_daemon || fail "xen-virtio serve --static does not stop"
}

is_served() { [ "$(xen-virtio list | grep -c 0x2000)" -eq 4 ]; }

guest_use() {
    need_disk vda
    need_net eth0 192.168.77.2/24
    check ping -c 3 -W 10 192.168.77.1
    check dd if=/dev/hwrng of=/dev/null bs=512 count=4
    wait_until 10 test -c /dev/hvc1 || fail "there is no console hvc1"
    stty raw </dev/hvc1
    echo "printed by the guest" >/dev/hvc1
    say "sum $(sum_of /dev/vda)"
}
