# Memory is taken from a guest and given back while it verifies what it wrote: nothing is
# corrupted, and Xen really gets the memory, which a mapping of ours would hold.
# shellcheck shell=sh

dom0() {
    guest balloon verify "$(new_disk balloon 32)"
    with_fio balloon
    create balloon
    expect balloon "verified 1" 120
    before=$(free_mib)
    for _ in 1 2; do
        written=$(counter bytes_written)
        check xl mem-set balloon 320
        wait_until 60 xen_has "$((before + 180))" ||
            fail "Xen has $(free_mib) MiB free, and had $before before 192 MiB were taken from the guest"
        check xl mem-set balloon 512
        wait_until 60 xen_lacks "$((before + 12))" ||
            fail "Xen has $(free_mib) MiB free, and had $before before the guest got its memory back"
        wait_until 60 has_written_since "$written" || fail "the guest's I/O has stopped"
    done
    [ "$(counter invalidations)" -gt 0 ] || fail "no invalidation was counted: $(xen-virtio list)"
    tell balloon stop
    finish balloon 120
}

xen_lacks() { [ "$(free_mib)" -le "$1" ]; }

guest_verify() {
    need_disk vda
    listen
    round=0
    until was_told; do
        check fio --name=verify --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite \
            --bs=16k --size=8m --randseed="$round" --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never --output=/tmp/fio
        round=$((round + 1))
        say "verified $round"
    done
}
