# The lab's own Linux, of Debian's source and linux.config beside: what Debian's kernels leave out is in it, and little
# else. Guests, driver domains and Dom0 all can run it. Sourced after apt.sh.
# shellcheck shell=bash

linux_source_package=linux-source-6.12
own_kernel_image=$out/Image-own
# To be set to yes before build_lab by who boots it.
wants_linux=no

build_linux() {
    local apt_release=trixie package dir
    package=$(fetch_package "$linux_source_package")
    basename "$package" >>"$packages_file"
    dir=$cache/$(basename "$package" .deb)-$(key_of_stdin <"$lab/host/linux.config")
    make_dir_once "$dir" make_linux "$package"
    cp "$dir/Image" "$own_kernel_image"
}

# make_linux PACKAGE DIRECTORY
make_linux() {
    local build=$2/build
    say "building Linux of ${1##*/} (about ten minutes, once)"
    mkdir "$build"
    dpkg-deb --fsys-tarfile "$1" | tar -x -O "./usr/src/$linux_source_package.tar.xz" |
        tar -x --xz --strip-components=1 -C "$build"
    quietly "$out/build/linux.log" compile_linux "$build"
    mv "$build/arch/arm64/boot/Image" "$2/"
    rm -rf "$build"
}

compile_linux() {
    local make=(make -C "$1" ARCH=arm64 "CROSS_COMPILE=$cross") wanted
    KCONFIG_ALLCONFIG=$lab/host/linux.config "${make[@]}" allnoconfig
    # Kconfig drops what it cannot have, in silence.
    wanted=$(grep '=y$' "$lab/host/linux.config" | grep -vxF -f "$1/.config") &&
        { echo "Linux takes none of these: $wanted"; return 1; }
    "${make[@]}" "-j$(nproc)" Image
}
