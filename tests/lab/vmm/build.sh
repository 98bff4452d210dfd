# What the cases without Xen run: our daemons, a guest, and clients of vhost-user as Debian has
# them. Sourced after rootfs.sh.
# shellcheck shell=bash

vmm_out=$out/vmm
vmm_logs=$vmm_out/logs
# Our program under the names by which it serves one kind of device.
vmm_programs=$vmm_out/bin
vmm_initramfs=$vmm_out/guest.cpio

# The newer QEMU has devices for any kind, and a driver for disks outside of any guest.
newer_qemu_release=trixie-backports
newer_qemu_packages=(qemu-system-arm qemu-utils qemu-block-extra)
dpdk_release=bookworm
dpdk_packages=(dpdk-dev librte-net-virtio23 librte-mempool-ring23)

build_vmm() {
    local packages_file=$vmm_out/packages.txt sysroot
    mkdir -p "$vmm_out"
    claim_directories
    build_kernel
    build_guests
    make_native_sysroot "$newer_qemu_release" "${newer_qemu_packages[@]}"
    export newer_qemu_sysroot=$sysroot
    make_native_sysroot "$dpdk_release" "${dpdk_packages[@]}"
    export dpdk_sysroot=$sysroot
    { pack_scripts "$lab"/vmm/{guest,power-cut}.sh && pack_sync && cat "$out/guest-all.cpio"; } >"$vmm_initramfs"
    release_cache
    build_daemons
}

# Prints an initramfs with a sync that takes files and directories, as busybox's does not.
pack_sync() {
    local sysroot root=$out/root-sync
    rm -rf "$root"
    make_sysroot coreutils
    add_programs "$root" sync
    pack "$root"
    rm -rf "$root"
}

# make_native_sysroot RELEASE PACKAGE...: as make_sysroot, for programs that run on this machine.
make_native_sysroot() {
    local apt_release=$1 apt_arch
    apt_arch=$(dpkg --print-architecture)
    make_sysroot "${@:2}"
}

# The build that the other tests have made already.
build_daemons() {
    local kind program
    say "building xen-virtio for this machine"
    (cd "$repo" && quietly "$out/build/cargo-build-native.log" cargo build --locked -p xen-virtio -p power-cut)
    program=$(cd "$repo" && realpath "${CARGO_TARGET_DIR:-target}/debug/xen-virtio")
    mkdir -p "$vmm_programs"
    ln -sfn "${program%/*}/power-cut" "$vmm_programs/power-cut"
    for kind in disk net console rng vsock; do
        ln -sfn "$program" "$vmm_programs/virtio-$kind"
    done
}
