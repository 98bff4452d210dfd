# Dom0 with systemd as its first process: that of the Debian whose Xen is in use, with the few units that a service
# takes for granted. Sourced after rootfs.sh.
# shellcheck shell=bash

# Each target with what it brings about has no part in it: there are no disks to mount, no users, and no journal.
systemd_units=(sysinit.target basic.target multi-user.target shutdown.target)
# The second one since systemd 254.
systemd_parts=(systemd systemd-executor)

# Adds it to Dom0's root file system; so after build_dom0.
add_systemd() {
    local sysroot key root=$out/root-systemd apt_release=$xen_release part dir
    make_sysroot systemd
    key=$(cat "$lab"/{host/systemd.sh,dom0/lab.service} "$dom0_initrd.key" - <<<"$sysroot" | key_of_stdin)
    is_made "$booted_initrd" "$key" && return
    say "adding systemd to Dom0's root file system for Xen $xen_version"
    rm -rf "$root"
    mkdir -p "$root/usr/lib/systemd/system" "$root/etc/systemd/system"
    add_programs "$root" systemctl
    for dir in "$sysroot"/{usr/,}lib/systemd; do
        for part in "${systemd_parts[@]}"; do
            [[ -e $dir/$part ]] || continue
            cp "$dir/$part" "$root/usr/lib/systemd/"
            add_libraries "$root" "$dir/$part"
        done
    done
    for part in "${systemd_units[@]}"; do
        cp "$(find_in "$part" "$sysroot"/{usr/,}lib/systemd/system)" "$root/usr/lib/systemd/system/"
    done
    cp "$lab/dom0/lab.service" "$root/etc/systemd/system/"
    ln -s multi-user.target "$root/etc/systemd/system/default.target"
    mkdir "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../lab.service "$root/etc/systemd/system/multi-user.target.wants/"
    # There is no journal; and the console is for the cases to report on.
    printf '%s\n' '[Manager]' LogTarget=kmsg ShowStatus=no >"$root/etc/systemd/system.conf"
    # Without one this would be a first boot, on which systemd sets up the machine.
    key_of_stdin <<<"$key" | sed 's/.*/&&/' >"$root/etc/machine-id"
    { pack "$root" && cat "$dom0_initrd"; } >"$booted_initrd"
    rm -rf "$root"
    made "$booted_initrd" "$key"
}
