# The image shrinks under a guest: that guest sees I/O errors, its worker lives, and the
# disk of another guest works on.
# shellcheck shell=sh

dom0() {
    guest victim read "$(new_disk victim 16)"
    guest neighbour work "$(new_disk neighbour 16)"
    create victim
    create neighbour
    expect victim "read it whole" 60
    expect neighbour "working" 60
    truncate -s 4M /run/disks/victim
    expect victim "error" 60
    finish victim
    written=$(counter bytes_written)
    wait_until 20 has_written_since "$written" || fail "the other guest's disk has stopped"
    tell neighbour stop
    finish neighbour
}

guest_read() {
    need_disk vda
    check dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null
    say "read it whole"
    for _ in $(seq 100); do
        drop_caches
        if ! dd if=/dev/vda of=/dev/null bs=1M skip=8 2>/dev/null; then
            say "error"
            check dd if=/dev/vda of=/dev/null bs=1M count=4 2>/dev/null
            return
        fi
        sleep 0.2
    done
    fail "the part that is gone can still be read"
}

guest_work() {
    need_disk vda
    listen
    say "working"
    until was_told; do
        check dd if=/dev/urandom of=/tmp/pattern bs=1M count=1 2>/dev/null
        check dd if=/tmp/pattern of=/dev/vda bs=1M conv=fsync 2>/dev/null
        drop_caches
        dd if=/dev/vda bs=1M count=1 2>/dev/null | check cmp - /tmp/pattern
    done
}
