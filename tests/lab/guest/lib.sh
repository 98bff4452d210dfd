# What cases may use in a guest. Sourced by the guest's init.
# shellcheck shell=sh

# Prints words for Dom0's part of the case to wait for.
say() { echo "@ $*"; }

fail() {
    say "failed: $*"
    poweroff -f
    sleep 100
}

check() { "$@" || fail "this failed: $*"; }

# Waits for a disk to be there.
need_disk() {
    need_tries=100
    until [ -b "/dev/$1" ]; do
        need_tries=$((need_tries - 1))
        [ "$need_tries" -gt 0 ] || fail "there is no disk $1"
        sleep 0.1
    done
}

# Lets was_told become true once Dom0 types a line on our console.
listen() { (read -r words </dev/console && echo "$words" >/tmp/told) & }

was_told() { [ -e /tmp/told ]; }

sum_of() { sha256sum "$1" | cut -d ' ' -f 1; }

drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }
