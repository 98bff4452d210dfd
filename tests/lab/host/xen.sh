# The hypervisor, with IOREQ servers, which Debian's own build of Xen for Arm leaves out.
# Sourced after apt.sh.
# shellcheck shell=bash

build_xen() {
    local source=$cache/xen-source-$xen_series tree=$series_out/xen-build apt_release=$xen_release
    [[ -e $xen_image ]] && return
    say "building Xen $xen_series with CONFIG_IOREQ_SERVER (about a minute, once)"
    make_dir_once "$source" fetch_source xen "$xen_series"
    rm -rf "$tree"
    mkdir "$tree"
    tar -x --strip-components=1 -C "$tree" -f "$source"/*.orig.tar.xz
    quietly "$out/build/xen-$xen_series.log" compile_xen "$tree/xen"
    cp "$tree/xen/xen" "$xen_image.partial"
    mv "$xen_image.partial" "$xen_image"
    rm -rf "$tree"
}

compile_xen() {
    local make=(make -C "$1" "XEN_TARGET_ARCH=arm64" "CROSS_COMPILE=$cross")
    "${make[@]}" defconfig
    printf '%s\n' CONFIG_EXPERT=y CONFIG_UNSUPPORTED=y CONFIG_IOREQ_SERVER=y >>"$1/.config"
    "${make[@]}" olddefconfig
    grep -q '^CONFIG_IOREQ_SERVER=y' "$1/.config" || { echo "CONFIG_IOREQ_SERVER is gone from Xen's Kconfig"; return 1; }
    "${make[@]}" "-j$(nproc)"
}
