# Debian's kernel, and the root file systems of Dom0 and of the guests: each an initramfs
# with busybox, the programs wanted and the libraries that these name. Sourced after apt.sh.
# shellcheck shell=bash

kernel_image=$out/Image
dom0_initrd=$out/dom0.cpio
guest_initrd=$out/guest.cpio
# fio brings 40 MB of libraries: only the guests that measure or verify get it.
guest_fio_initrd=$out/guest-fio.cpio

dom0_packages=("xen-utils-$xen_series" xenstore-utils)
shared_packages=(busybox-static strace e2fsprogs fio)

xen_bin=usr/lib/xen-$xen_series/bin
dom0_programs=("$xen_bin"/{xl,xenstored,xenconsoled,xen-init-dom0}
    usr/bin/xenstore-{ls,read,write,rm,watch} usr/bin/strace
    sbin/{mke2fs,e2fsck})
guest_programs=(sbin/{mke2fs,e2fsck})

dom0_modules=(xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc loop ext4 crc32c_generic
    9p 9pnet_virtio virtio_mmio)
guest_modules=(virtio_mmio virtio_blk ext4 crc32c_generic)

library_dirs=({usr/,}lib/aarch64-linux-gnu usr/lib/aarch64-linux-gnu/ceph "usr/lib/xen-$xen_series/lib/aarch64-linux-gnu")

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

# Prints the path within the sysroot of each library that ELF file $1 names.
needed_libraries() {
    local name dir
    "${cross}objdump" -p "$1" | sed -n 's/^ *NEEDED *//p' | while read -r name; do
        for dir in "${library_dirs[@]}"; do
            [[ -e $sysroot/$dir/$name ]] && echo "$dir/$name" && break
        done || die "no package brings the library $name, which ${1##*/} needs"
    done
}

# Copies programs into the root file system $1, and the libraries they need, all into /lib.
add_programs() {
    local root=$1 file
    shift
    mkdir -p "$root/usr/sbin" "$root/lib"
    for file in "$@"; do
        cp -L "$sysroot/$file" "$root/usr/sbin/"
        add_libraries "$root" "$sysroot/$file"
    done
}

add_libraries() {
    local root=$1 library
    needed_libraries "$2" | while read -r library; do
        [[ -e $root/lib/${library##*/} ]] && continue
        cp -L "$sysroot/$library" "$root/lib/"
        add_libraries "$root" "$sysroot/$library"
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
    cp "$sysroot/bin/busybox" "$root/bin/"
    cp "$sysroot/etc/mke2fs.conf" "$root/etc/"
    ln -s busybox "$root/bin/sh"
    # Where the kernel looks for modprobe.
    ln -s bin "$root/sbin"
    install -m 755 "$2" "$root/init"
}

# Prints directory $1 as an initramfs.
pack() { (cd "$1" && find . | sort | cpio --quiet -o -H newc -R 0:0); }

build_rootfs() {
    local packages kernel key
    mapfile -t packages < <(fetch_with_dependencies "${dom0_packages[@]}" "${shared_packages[@]}")
    kernel=$(fetch_package "$(lab_apt_cache depends linux-image-arm64 | sed -n 's/^ *Depends: //p')")
    sysroot=$cache/sysroot-$(printf '%s\n' "${packages[@]##*/}" | key_of_stdin)
    kernel_tree=$cache/$(basename "$kernel" .deb)
    key=$(cat "$lab"/{host/rootfs.sh,dom0/init,guest/init} - <<<"$sysroot $kernel_tree" | key_of_stdin)
    [[ $(cat "$out/rootfs.key" 2>/dev/null) == "$key" ]] && return
    say "making the root file systems of Dom0 and of the guests"
    make_dir_once "$sysroot" unpack_packages "${packages[@]}"
    make_dir_once "$kernel_tree" unpack_kernel "$kernel"
    cp "$kernel_tree"/boot/vmlinuz-* "$kernel_image"
    pack_guests
    pack_dom0
    # For people who want to know what exactly was used.
    {
        compgen -G "$cache/xen-source-$xen_series/*.dsc" || true
        printf '%s\n' "${packages[@]}" "$kernel"
    } | sed 's,.*/,,' >"$out/packages.txt"
    echo "$key" >"$out/rootfs.key"
}

pack_guests() {
    local root=$out/root-guest fio=$out/root-fio
    new_root "$root" "$lab/guest/init"
    add_programs "$root" "${guest_programs[@]}"
    add_modules "$root" "${guest_modules[@]}"
    pack "$root" >"$guest_initrd"
    rm -rf "$fio"
    add_programs "$fio" usr/bin/fio
    pack "$fio" >"$guest_fio_initrd"
    cat "$guest_initrd" >>"$guest_fio_initrd"
    rm -rf "$root" "$fio"
}

pack_dom0() {
    local root=$out/root-dom0
    new_root "$root" "$lab/dom0/init"
    add_programs "$root" "${dom0_programs[@]}"
    # Our own program's need beside the C library.
    cp -L "$sysroot/lib/aarch64-linux-gnu/libgcc_s.so.1" "$root/lib/"
    add_modules "$root" "${dom0_modules[@]}"
    pack "$root" >"$dom0_initrd"
    rm -rf "$root"
}
