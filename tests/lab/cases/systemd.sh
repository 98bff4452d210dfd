# The unit as it is shipped, run by a systemd that is Dom0's first process. Under it a guest with all kinds of device
# is served by a confined worker, and verifies its disks while the service is reloaded into another version and into
# programs that cannot go on, restarted, killed, killed with all of its processes, stopped and started: the guest sees
# neither an error nor an end.
# shellcheck shell=sh

# The unit is the daemon.
needs_daemon=no
needs_next_version=yes
next=/lab/next/xen-virtio
unit=/etc/systemd/system/xen-virtio.service
installed=/usr/local/sbin/xen-virtio

dom0() {
    # shellcheck source=tests/lab/dom0/confined.sh
    . /lab/dom0/confined.sh
    mkdir -p "${installed%/*}" "$unit.d"
    install_program /lab/xen-virtio
    cp /lab/xen-virtio.service "$unit"
    printf '[Service]\nStandardOutput=append:%s\nStandardError=inherit\n' "$daemon_log" >"$unit.d/log.conf"
    check systemctl daemon-reload
    wrong_options_are_not_tried_again
    check systemctl enable --now xen-virtio
    check daemon_answers
    broker=$(main_pid)
    [ "$broker" = "$(daemon_pid)" ] || fail "systemd takes process $broker for the service, which is $(daemon_pid)"
    grep -q '^Seccomp:[[:space:]]*2$' "/proc/$broker/status" || fail "the broker has no filter, so systemd has not done what the unit says"

    new_bridge lab 192.168.77.1/24
    new_guest
    create systemd
    expect systemd obeying 60
    worker=$(worker_pids)
    is_confined systemd
    devices_work systemd
    all_is_kept

    in_guest systemd 'start_fio vda vdb'
    fio_writes bytes_written
    another_version
    a_program_that_cannot_go_on
    a_program_that_ends_at_once
    restarted
    broker_killed
    all_killed
    stopped_and_started
    fio_ends_well systemd
    noticed_nothing systemd
    disks_are_whole
    worker=$(worker_pids)
    is_confined systemd
    devices_work systemd

    mark_log
    check destroy systemd
    ! logged 'without having touched' || fail "a device that a former worker served is taken for one that was never used"
    wait_until 20 no_workers || fail "the worker outlives its guest"
    wait_until 10 keeps 0 || fail "systemd keeps $(kept) descriptors of a guest that has gone"
    check systemctl stop xen-virtio
    no_daemon || fail "xen-virtio serve outlives its service"
}

install_program() {
    cp "$1" "$installed.new"
    chmod 755 "$installed.new"
    mv "$installed.new" "$installed"
}

# Two disks, one of them a block device, and a device of every other kind; where xl knows no others than disks, in
# their slots.
new_guest() {
    modprobe loop
    loop=$(losetup -f)
    check losetup "$loop" "$(new_disk block 16)"
    new_disk systemd 16 >/dev/null
    if [ "$(xl info xen_minor)" -ge 18 ]; then
        guest systemd loaded /run/disks/systemd "$loop"
        with_virtio systemd 1 3 4 13
        for kind in net console rng vsock; do entry "$kind"; done | entries systemd
    else
        mkdir -p /etc/xen-virtio/slot
        for kind in net console rng vsock; do entry "$kind" >"/etc/xen-virtio/slot/$kind.toml"; done
        guest systemd loaded /run/disks/systemd "$loop" /etc/xen-virtio/slot/*.toml
    fi
    with_all_programs systemd
}

entry() {
    echo "[[$1]]"
    [ "$1" != net ] || echo 'bridge = "lab"'
}

main_pid() { systemctl show -P MainPID xen-virtio; }
kept() { systemctl show -P NFileDescriptorStore xen-virtio; }
keeps() { [ "$(kept)" -eq "$1" ]; }
all_serve() { [ "$(xen-virtio list | grep -c ': serving')" -eq 6 ] && has_workers 1; }
all_is_kept() { wait_until 10 keeps 6 || fail "systemd keeps $(kept) descriptors for 6 devices"; }

# logged WORDS [LINES]: whether they are among what was logged since $log_before lines.
mark_log() { log_before=$(wc -l <"$daemon_log"); }
logged() { tail -n "+$((log_before + 1))" "$daemon_log" | grep -q -- "$1"; }
need_logged() { logged "$1" || fail "the log lacks '$1': $(tail -n 5 "$daemon_log")"; }

# before: notes who serves. goes_on: another worker does, and I/O goes on.
before() {
    broker=$(main_pid) worker=$(worker_pids)
    mark_log
}

goes_on() {
    wait_until 60 all_serve || fail "not all is served again: $(xen-virtio list; tail -n 20 "$daemon_log")"
    [ "$(worker_pids)" != "$worker" ] || fail "the former worker serves still"
    all_is_kept
    fio_writes bytes_written
}

has_another_broker() { daemon_answers && [ "$(main_pid)" != "$broker" ] && [ "$(main_pid)" = "$(daemon_pid)" ]; }
need_another_broker() { wait_until 60 has_another_broker || fail "no other xen-virtio is started: $(systemctl status xen-virtio)"; }

# Exit code 2 is in RestartPreventExitStatus=.
wrong_options_are_not_tried_again() {
    printf '[Service]\nExecStart=\nExecStart=%s serve --restarts many\n' "$installed" >"$unit.d/wrong.conf"
    check systemctl daemon-reload
    ! systemctl start xen-virtio || fail "the service starts with wrong options"
    came_to=$(systemctl show -p NRestarts -p ExecMainStatus -p ActiveState xen-virtio | xargs)
    [ "$came_to" = "NRestarts=0 ExecMainStatus=2 ActiveState=failed" ] || fail "the service is tried again: $came_to"
    rm "$unit.d/wrong.conf"
    check systemctl daemon-reload
}

another_version() {
    before
    install_program "$next"
    check systemctl reload xen-virtio
    need_logged "^xen-virtio .* serves 1 guest and 6 devices"
    [ "$(main_pid)" = "$broker" ] || fail "the reload is another process: $(main_pid), which was $broker"
    "$installed" --version
    logged "$("$installed" --version)" || fail "another version runs than is installed"
    goes_on
}

# install_other FOLLOWS: a program that answers this when it is asked whether it can go on, and does nothing else but to
# upgrade to itself.
install_other() {
    cat >/run/other <<END
#!/bin/sh
case \$1 in
upgrade) exec $next upgrade --binary $installed ;;
follows) $1 ;;
esac
exit 1
END
    install_program /run/other
}

# It says that it reads no record.
a_program_that_cannot_go_on() {
    before
    install_other "echo '{ \"program\": \"9.0.0\", \"protocol\": [], \"record\": [] }'; exit"
    ! systemctl reload xen-virtio || fail "the reload does not fail"
    need_logged 'xen-virtio 9.0.0 cannot go on'
    [ "$(main_pid) $(worker_pids)" = "$broker $worker" ] || fail "a reload that is refused changes something"
    fio_writes bytes_written
}

# It says that it can go on, and then ends, each time that it is started: until the one before is installed again. A worker
# that dies meanwhile is followed then.
a_program_that_ends_at_once() {
    before
    install_other "exec $next \"\$@\""
    ! systemctl reload xen-virtio || fail "the reload does not fail"
    need_logged "$installed was started in the place of xen-virtio .*, and has ended"
    wait_until 60 is_tried_again || fail "it is not started again: $(systemctl status xen-virtio)"
    check kill -KILL "$worker"
    install_program "$next"
    need_another_broker
    need_logged 'it ended when there was no xen-virtio'
    goes_on
}

# More often than systemd tries by default.
is_tried_again() { [ "$(systemctl show -P NRestarts xen-virtio)" -gt 6 ]; }

restarted() {
    before
    check systemctl restart xen-virtio
    check has_another_broker
    goes_on
}

broker_killed() {
    before
    check kill -KILL "$broker"
    need_another_broker
    goes_on
}

# What the guest goes on with was kept by systemd alone.
all_killed() {
    before
    check systemctl kill --signal=KILL xen-virtio
    need_another_broker
    need_logged 'it ended when there was no xen-virtio'
    goes_on
}

stopped_and_started() {
    before
    check systemctl stop xen-virtio
    no_daemon || fail "xen-virtio serve does not stop"
    [ "$(worker_pids)" = "$worker" ] || fail "the worker ends with the service"
    keeps 0 || fail "a service that is stopped keeps $(kept) descriptors"
    check systemctl start xen-virtio
    goes_on
}

disks_are_whole() {
    reads vda /run/disks/systemd
    reads vdb "$loop"
}

# reads DISK IMAGE: whether the guest reads what is there.
reads() {
    [ "$(in_guest systemd "drop_caches; sum_of /dev/$1")" = "$(sum_of "$2")" ] || fail "the guest reads something else from $1 than $2 holds"
}

guest_loaded() {
    need_disk vdb
    need_net eth0 192.168.77.2/24
    let_root_in
    guest_obey
}
