# Debian's kernel, and the root file systems of Dom0 and of the guests: each an initramfs
# with busybox, the programs wanted and the libraries that these name. Sourced after apt.sh.
# shellcheck shell=bash

# One kernel and one set of guests for all Xens, and for guests without Xen.
kernel_image=$out/Image
# What was used of Debian, for people to read.
packages_file=$out/packages.txt

shared_packages=(busybox-static e2fsprogs iperf3 socat)
guest_packages=(fio rng-tools5 ethtool)
dom0_packages() {
    printf '%s\n' "xen-utils-$xen_version" xenstore-utils strace
    if has_foreign_backends; then printf '%s\n' virtiofsd qemu-utils; fi
}

guest_programs=(mke2fs e2fsck resize2fs)
# What only some cases want, NAME: PROGRAM..., each in an initramfs guest-NAME. fio brings
# 40 MB of libraries.
guest_flavours=("fio: fio" "net: iperf3 socat rngtest" "all: fio iperf3 socat rngtest ethtool")
dom0_programs() {
    printf '%s\n' xl xenstored xenconsoled xen-init-dom0 xenstore-{ls,read,write,rm,watch} strace
    printf '%s\n' mke2fs e2fsck iperf3 socat
    if has_foreign_backends; then printf '%s\n' virtiofsd qemu-storage-daemon qemu-{img,nbd}; fi
}
# On this Xen are the cases that want vhost-user backends of others.
has_foreign_backends() { [[ $xen_version == 4.20 ]]; }

guest_modules=(virtio_mmio virtio_pci virtio_blk virtio_net virtio_console virtio-rng virtiofs
    vmw_vsock_virtio_transport xen-netfront xen-blkfront ext4 crc32c_generic)
dom0_modules=(xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc xen-netback xen-blkback tun bridge loop ext4 crc32c_generic
    9p 9pnet_virtio virtio_mmio)

# Unpacks packages, given first, into the directory given last.
unpack_packages() {
    local dir=${*: -1} package
    for package in "${@:1:$#-1}"; do
        dpkg-deb --extract "$package" "$dir"
    done
}

# Unpacks from kernel package $1 the kernel and all modules into directory $2.
unpack_kernel() {
    dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" ./boot ./lib/modules
    depmod --basedir "$2" "$(ls "$2/lib/modules")"
}

# make_sysroot PACKAGE...: sets sysroot to a directory with these packages and all that they
# depend on, and adds their names to packages_file.
make_sysroot() {
    local list packages
    list=$(fetch_with_dependencies "$@")
    mapfile -t packages <<<"$list"
    sysroot=$cache/sysroot-$(printf '%s\n' "${packages[@]##*/}" | key_of_stdin)
    make_dir_once "$sysroot" unpack_packages "${packages[@]}"
    printf '%s\n' "${packages[@]##*/}" >>"$packages_file"
}

# Prints the path of program $1 in the sysroot. What Debian has as usr/sbin/xl is a script.
find_program() {
    find_in "$1" "$sysroot"/usr/lib/xen-*/bin "$sysroot"/{usr/,}{bin,sbin} "$sysroot"/usr/libexec
}

# Prints the path of library $1 in the sysroot.
find_library() {
    find_in "$1" "$sysroot"/{usr/,}lib/aarch64-linux-gnu{,/ceph,/systemd} "$sysroot"/usr/lib/xen-*/lib/aarch64-linux-gnu
}

# find_in NAME DIRECTORY...: prints the path of the first.
find_in() {
    local name=$1 dir
    shift
    for dir in "$@"; do
        [[ -e $dir/$name ]] && printf '%s\n' "$dir/$name" && return
    done
    die "no package brings $name"
}

# Prints the path of each library that ELF file $1 names.
needed_libraries() {
    local name
    "${cross}objdump" -p "$1" | sed -n 's/^ *NEEDED *//p' | while read -r name; do
        find_library "$name"
    done
}

# Copies programs into the root file system $1, and the libraries they need, all into /lib.
add_programs() {
    local root=$1 name file
    shift
    mkdir -p "$root/usr/sbin" "$root/lib"
    for name in "$@"; do
        file=$(find_program "$name")
        cp -L "$file" "$root/usr/sbin/"
        add_libraries "$root" "$file"
    done
}

add_libraries() {
    local root=$1 library
    needed_libraries "$2" | while read -r library; do
        [[ -e $root/lib/${library##*/} ]] && continue
        cp -L "$library" "$root/lib/"
        add_libraries "$root" "$library"
    done
}

# Copies modules into the root file system $1, and those they depend on.
add_modules() {
    local root=$1 version
    shift
    version=$(ls "$kernel_tree/lib/modules")
    modprobe --dirname "$kernel_tree" --set-version "$version" --show-depends --all "$@" |
        sed -n 's/^insmod //p' | sort -u | while read -r module; do
        install -D -m 644 "$module" "$root/${module#"$kernel_tree"/}"
    done
    cp "$kernel_tree/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$version/"
    depmod --basedir "$root" "$version"
}

# Starts a root file system $1 with busybox and its init, script $2.
new_root() {
    local root=$1
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,etc,mnt,proc,root,run,sys,tmp,usr,var,lab}
    cp "$(find_program busybox)" "$root/bin/"
    cp "$sysroot/etc/mke2fs.conf" "$root/etc/"
    ln -s busybox "$root/bin/sh"
    # Where the kernel looks for modprobe.
    ln -s bin "$root/sbin"
    install -m 755 "$2" "$root/init"
}

# Prints directory $1 as an initramfs.
pack() { (cd "$1" && find . | sort | cpio --quiet -o -H newc -R 0:0); }

# is_made FILE KEY: whether FILE was made from what KEY stands for. made FILE KEY notes it.
is_made() { [[ $(cat "$1.key" 2>/dev/null) == "$2" ]]; }
made() { echo "$2" >"$1.key"; }

# Unpacks Debian's kernel; the other root file systems take its modules.
build_kernel() {
    local kernel
    kernel=$(fetch_package "$(lab_apt_cache depends linux-image-arm64 | sed -n 's/^ *Depends: //p')")
    kernel_tree=$cache/$(basename "$kernel" .deb)
    make_dir_once "$kernel_tree" unpack_kernel "$kernel"
    cp "$kernel_tree"/boot/vmlinuz-* "$kernel_image"
    basename "$kernel" >"$packages_file"
}

build_guests() {
    local sysroot key root=$out/root-guest flavour
    make_sysroot "${shared_packages[@]}" "${guest_packages[@]}"
    key=$(cat "$lab"/{host/rootfs.sh,guest/init} - <<<"$sysroot $kernel_tree" | key_of_stdin)
    is_made "$out/guest.cpio" "$key" && return
    say "making the guests' root file system"
    new_root "$root" "$lab/guest/init"
    add_programs "$root" "${guest_programs[@]}"
    add_modules "$root" "${guest_modules[@]}"
    pack "$root" >"$out/guest.cpio"
    for flavour in "${guest_flavours[@]}"; do
        rm -rf "$root"
        # shellcheck disable=SC2086 # programs are words
        add_programs "$root" ${flavour#*: }
        { pack "$root" && cat "$out/guest.cpio"; } >"$out/guest-${flavour%%: *}.cpio"
    done
    rm -rf "$root"
    made "$out/guest.cpio" "$key"
}

build_dom0() {
    local sysroot key root=$out/root-dom0 apt_release=$xen_release
    # shellcheck disable=SC2046 # packages are words
    make_sysroot $(dom0_packages) "${shared_packages[@]}"
    if has_foreign_backends; then build_vhost_device_rng; fi
    key=$(cat "$lab"/{host/rootfs.sh,dom0/init} - <<<"$sysroot $kernel_tree $vhost_device_rng" | key_of_stdin)
    is_made "$dom0_initrd" "$key" && return
    say "making Dom0's root file system for Xen $xen_version"
    new_root "$root" "$lab/dom0/init"
    # shellcheck disable=SC2046 # programs are words
    add_programs "$root" $(dom0_programs)
    if has_foreign_backends; then cp "$vhost_device_rng/bin/vhost-device-rng" "$root/usr/sbin/"; fi
    # What programs in Rust need beside the C library.
    cp -L "$(find_library libgcc_s.so.1)" "$root/lib/"
    add_modules "$root" "${dom0_modules[@]}"
    pack "$root" >"$dom0_initrd"
    rm -rf "$root"
    made "$dom0_initrd" "$key"
}
