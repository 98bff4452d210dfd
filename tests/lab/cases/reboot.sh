# A guest that reboots comes back under a new domain id and finds its data; before, its
# driver lets go of the device and takes it again, which resets it.
# shellcheck shell=sh

dom0() {
    guest reboot twice "$(new_disk reboot 8)"
    set_option reboot 'on_reboot = "restart"'
    create reboot
    first=$(domid reboot)
    expect reboot "first boot is over" 60
    wait_until 80 is_gone "$first" || fail "domain $first is still there"
    wait_until 60 has_said reboot "data is there" || fail "the guest did not find its data: $(tail -n 3 "$(console reboot)")"
    finish reboot
}

guest_twice() {
    need_disk vda
    if [ "$(dd if=/dev/vda bs=16 count=1 2>/dev/null)" = "written by boot1" ]; then
        say "data is there"
        return
    fi
    printf 'written by boot1' | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
    driver=/sys/bus/virtio/drivers/virtio_blk
    device=$(basename "$(readlink -f /sys/block/vda/device)")
    for _ in 1 2 3 4 5; do
        echo "$device" >$driver/unbind
        [ ! -b /dev/vda ] || fail "the disk stays without its driver"
        echo "$device" >$driver/bind
        need_disk vda
        [ "$(dd if=/dev/vda bs=16 count=1 2>/dev/null)" = "written by boot1" ] || fail "other data after a device reset"
    done
    say "first boot is over"
    reboot -f
    sleep 100
}
