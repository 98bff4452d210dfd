# `xl destroy` in the middle of I/O leaves no domain, no worker, no descriptor and no memory
# behind, however often.
# shellcheck shell=sh

rounds=4

dom0() {
    image=$(new_disk destroy 32)
    destroy_one 0
    descriptors=$(daemon_fds)
    memory=$(free_mib)
    for round in $(seq "$rounds"); do destroy_one "$round"; done

    [ "$(daemon_fds)" -le "$descriptors" ] ||
        fail "the broker has $(daemon_fds) descriptors, before $rounds guests it had $descriptors: $(ls -l "/proc/$(daemon_pid)/fd")"
    wait_until 10 xen_has "$memory" || fail "Xen has $(free_mib) MiB free, before $rounds guests it had $memory"
}

destroy_one() {
    name=destroy$1
    guest "$name" "write" "$image"
    create "$name"
    expect "$name" "writing" 60
    sleep "0.$1"
    check destroy "$name"
    wait_until 10 no_workers || fail "the worker outlives its guest"
    wait_until 10 no_zombies || fail "the domain cannot die: $(xl list | tail -n 1)"
}

guest_write() {
    need_disk vda
    say "writing"
    while :; do dd if=/dev/zero of=/dev/vda bs=256k count=128 oflag=direct 2>/dev/null; done
}
