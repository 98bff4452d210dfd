# What `make bench-lab` counts of raising an interrupt of a guest. Not one of the cases, though
# written like them.
# shellcheck shell=sh

dom0() {
    guest idle wait "$(new_disk idle 1)"
    create idle
    expect idle ready 60
    # It would take its time for each of them.
    xl pause idle
    # The interrupt of the first virtio device, as libxl numbers them.
    /lab/interrupts "$(domid idle)" 33 | sed 's/^/@@ figures interrupts /'
    destroy idle
}

guest_wait() {
    need_disk vda
    say ready
    read -r _ </dev/console
}
