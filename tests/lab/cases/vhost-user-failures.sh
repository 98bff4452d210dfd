# Backends of others that are not there, never answer, die for good or stop cost the guest their
# own devices: it comes up without those that cannot be had, its own disk goes on, and its end
# leaves nothing.
# shellcheck shell=sh

dom0() {
    new_backend mute socat "UNIX-LISTEN:$(socket mute),fork" EXEC:'sleep 1000'
    new_foreign_disk disk "$(new_disk foreign 16)"
    new_foreign_entropy entropy
    guest failures all "$(new_disk own 16)"
    with_virtio failures 1a 13 2 4
    entries failures <<END
[[vhost-user]]
device = "fs"
socket = "$(socket nowhere)"

[[vhost-user]]
device = "vsock"
socket = "$(socket mute)"

[[vhost-user]]
device = "block"
socket = "$(socket disk)"

[[vhost-user]]
device = "rng"
socket = "$(socket entropy)"
END
    descriptors=$(daemon_fds)
    create failures
    expect failures obeying 90
    says_why nowhere
    says_why mute
    [ "$(in_guest failures 'ls /sys/bus/virtio/devices | wc -l')" -eq 3 ] ||
        fail "the guest has other devices than those that can be had: $(xen-virtio list)"
    in_guest failures 'work & read_on /dev/vdb iflag=direct & read_on /dev/hwrng &'
    own_disk_goes_on

    end_backend disk KILL
    kill -STOP "$(backend_pid entropy)"
    own_disk_goes_on
    in_guest failures '[ ! -e /tmp/ended-vdb ] && [ ! -e /tmp/ended-hwrng ]'
    xen-virtio list

    check destroy failures
    wait_until 20 no_workers || fail "the worker outlives its guest"
    wait_until 20 no_zombies || fail "the domain cannot die: $(xl list | tail -n 1)"
    [ "$(daemon_fds)" -le "$descriptors" ] || fail "the broker keeps descriptors: $(ls -l "/proc/$(daemon_pid)/fd")"
    end_all_backends
}

# says_why BACKEND: waits for a line in the log that names its socket.
says_why() { wait_until 30 grep -q "$(socket "$1")" "$daemon_log" || fail "the log says nothing of $(socket "$1")"; }

# Goes on, and what it reads is what it wrote.
own_disk_goes_on() {
    written=$(counter bytes_written xvda)
    wait_until 60 has_written_since "$written" || fail "the guest's own disk has stopped: $(xen-virtio list)"
    in_guest failures '[ ! -e /tmp/wrong ]'
}

guest_all() {
    need_disk vdb
    guest_obey
}

# Writes and reads the own disk without end; leaves /tmp/wrong when that fails.
work() {
    while dd if=/dev/urandom of=/tmp/pattern bs=64k count=4 2>/dev/null &&
        dd if=/tmp/pattern of=/dev/vda bs=64k oflag=direct 2>/dev/null &&
        dd if=/dev/vda bs=64k count=4 iflag=direct 2>/dev/null | cmp - /tmp/pattern; do :; done
    touch /tmp/wrong
}

# read_on FILE [OPTION]: reads without end, by dd with this option; leaves /tmp/ended-NAME when that fails.
read_on() {
    # shellcheck disable=SC2086 # no option is no word
    while dd if="$1" of=/dev/null bs=4k count=16 $2 2>/dev/null; do :; done
    touch "/tmp/ended-$(basename "$1")"
}
