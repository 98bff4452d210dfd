# The root file system of a driver domain: our program, what Xen's toolstack has for driver domains, and what makes
# disks and networks. Sourced after rootfs.sh.
# shellcheck shell=bash

driver_domain_programs=(xl xenstore-{ls,read} mke2fs e2fsck iperf3)
driver_domain_initrd=$out/driver-domain.cpio

# Of the packages that Dom0 has, too; so after build_dom0.
build_driver_domain() {
    local sysroot key root=$out/root-driver-domain apt_release=$xen_release
    # shellcheck disable=SC2046 # packages are words
    make_sysroot $(dom0_packages) "${shared_packages[@]}"
    key=$(cat "$lab"/{host/{rootfs,driver-domain}.sh,driver-domain/init} - <<<"$sysroot" | key_of_stdin)
    is_made "$driver_domain_initrd" "$key" && return
    say "making the driver domain's root file system"
    new_root "$root" "$lab/driver-domain/init"
    add_programs "$root" "${driver_domain_programs[@]}"
    # What programs in Rust need beside the C library.
    cp -L "$(find_library libgcc_s.so.1)" "$root/lib/"
    pack "$root" >"$driver_domain_initrd"
    rm -rf "$root"
    made "$driver_domain_initrd" "$key"
}
