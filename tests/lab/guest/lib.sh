# What cases may use in a guest. Sourced by the guest's init.
# shellcheck shell=sh

# Prints words for Dom0's part of the case to wait for.
say() { echo "@ $*"; }

fail() {
    # What Dom0 asks for has its output elsewhere.
    say "failed: $*" >/dev/console
    poweroff -f
    sleep 100
}

check() { "$@" || fail "this failed: $*"; }

# wait_until SECONDS COMMAND...: true as soon as the command is.
wait_until() {
    wait_tries=$(($1 * 10))
    shift
    until "$@"; do
        wait_tries=$((wait_tries - 1))
        [ "$wait_tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

# Waits for a disk to be there.
need_disk() { wait_until 10 test -b "/dev/$1" || fail "there is no disk $1"; }

# Prints where the device tree has virtio devices.
device_addresses() {
    for device in /proc/device-tree/virtio@*; do echo "0x${device#*@}"; done
}

# need_net NAME ADDRESS/BITS [MTU]: waits for a network interface and brings it up.
need_net() {
    wait_until 10 test -e "/sys/class/net/$1" || fail "there is no network interface $1"
    check ip link set "$1" mtu "${3:-1500}"
    check ip link set "$1" up
    check ip address add "$2" dev "$1"
}

# TCP takes a slow machine for a slow line and sends little at a time, though here a packet costs
# the same whatever its size.
send_large_packets() { echo 30 >/proc/sys/net/ipv4/tcp_min_tso_segs; }

# Runs what Dom0 asks for, a line of shell each, until it says "end".
guest_obey() {
    stty -echo </dev/console
    say "obeying"
    while read -r command </dev/console && [ "$command" != end ]; do
        (eval "$command") </dev/null >/tmp/answer 2>&1
        status=$?
        awk '{ print "@ output " $0 }' /tmp/answer
        say "answer $status"
    done
}

# Lets was_told become true once Dom0 types a line on our console.
listen() { (read -r words </dev/console && echo "$words" >/tmp/told) & }

was_told() { [ -e /tmp/told ]; }

sum_of() { sha256sum "$1" | cut -d ' ' -f 1; }

sum_of_files() { (cd "$1" && find . -type f | sort | xargs sha256sum | sha256sum); }

drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }

# Lets root log in, without a password.
let_root_in() {
    mkdir -p /root
    echo 'root::0:0:root:/root:/bin/sh' >/etc/passwd
}

# start_fio DISK...: writes the disks and verifies them, again and again until there is /tmp/enough; leaves
# /tmp/verified if all was read as it had been written.
start_fio() {
    rm -f /tmp/enough /tmp/verified /tmp/fio-ended
    verify_again_and_again "$(printf '/dev/%s:' "$@")" >/dev/null 2>&1 &
}

# verify_again_and_again FILES: paths, each with a colon behind it.
verify_again_and_again() {
    round=0
    while fio --name=verify --filename="${1%:}" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=16k --size=8m \
        --randseed="$round" --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never --output=/tmp/fio; do
        round=$((round + 1))
        if [ -e /tmp/enough ]; then
            touch /tmp/verified
            break
        fi
    done
    touch /tmp/fio-ended
}

# echo_of COMMAND: a megabyte through the command comes back as it was.
echo_of() {
    dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
    $1 </tmp/noise >/tmp/echo
    cmp /tmp/echo /tmp/noise
}

# receive_on_port NAME BYTES: answers with their checksum.
receive_on_port() {
    port=/dev/$(basename "$(dirname "$(grep -l "^$1\$" /sys/class/virtio-ports/*/name)")")
    exec 3<>"$port"
    : >/tmp/received
    # As long as nobody has opened it on the host, the port is at its end.
    while missing=$(($2 - $(wc -c </tmp/received))) && [ "$missing" -gt 0 ]; do
        head -c "$missing" <&3 >>/tmp/received
        sleep 0.1
    done
    sum_of /tmp/received >&3
}
