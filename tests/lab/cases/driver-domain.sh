# A driver domain serves two guests at once by mapping their memory, with disks and a bridge of its
# own. A guest reboots, is destroyed amid I/O, ends by itself; broker and worker are killed; at last
# the driver domain is destroyed under a guest, and another one serves. Nothing is left of any.
# shellcheck shell=sh

# shellcheck disable=SC2034 # read by dom0/case
needs_daemon=no
# shellcheck disable=SC2034 # read by tests/lab/run
needs_own_kernel=yes

dom0() {
    # shellcheck source=tests/lab/dom0/driver-domain.sh
    . /lab/dom0/driver-domain.sh
    memory=$(free_mib)
    start_driver
    without_guests=$(free_mib)
    start_mapped one 11
    start_mapped two 12
    in_guest one 'ping -c 1 192.168.78.12'

    reboot_served one
    use_served one 11

    kill_broker
    use_served one 11
    use_served two 12
    in_guest driver start_daemon
    tell two end
    finish two

    start_mapped three 13
    in_guest three write_for_ever
    check destroy three
    in_guest driver 'wait_until 15 has_workers 1'

    start_mapped four 14
    kill_worker_of four
    use_served four 14
    check destroy four
    in_guest driver 'wait_until 15 has_workers 1'
    tell one end
    finish one
    driver_has_nothing_left
    memory_is_back "$without_guests"

    start_mapped five 15
    in_guest five write_for_ever
    check destroy driver
    check destroy five
    memory_is_back "$memory"

    start_driver
    start_mapped six 16
    tell six end
    finish six
    driver_has_nothing_left
    check destroy driver
}

# start_mapped NAME NUMBER: a guest whose memory the driver domain maps, used.
start_mapped() {
    new_served "$1"
    with_mapping "$1"
    start_served "$@"
}

reboot_served() {
    first=$(domid "$1")
    tell "$1" "reboot -f"
    wait_until 120 is_gone "$first" || fail "domain $first is still there"
    wait_until 120 has_booted "$1" 2 || fail "guest $1 does not come back"
}

kill_broker() {
    # shellcheck disable=SC2016 # for the driver domain's shell
    in_guest driver 'kill -KILL $(daemon_pid); wait_until 10 no_daemon'
}

# The youngest is its. Another takes its place.
kill_worker_of() {
    # shellcheck disable=SC2016 # for the driver domain's shell
    in_guest driver 'kill -KILL $(worker_pids | sort -n | tail -n 1)'
    wait_until 30 driver_has_logged "domid=$(domid "$1") .*worker_restarted" || fail "no other worker takes its place"
}

write_for_ever() {
    while :; do dd if=/dev/zero of=/dev/vda bs=256k count=16 oflag=direct; done >/dev/null 2>&1 &
}
