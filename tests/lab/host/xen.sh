# The hypervisor, with IOREQ servers, which Debian's own build of Xen for Arm leaves out.
# Sourced after apt.sh.
# shellcheck shell=bash

# What docs/driver-domain.md has people build such a Xen from.
driver_domain_files=$repo/guest-config/driver-domain

build_xen() {
    local source=$cache/xen-source-$xen_version tree=$series_out/xen-build apt_release=$xen_release key
    make_dir_once "$source" fetch_source xen "$xen_version"
    (cd "$source" && ls) >>"$packages_file"
    key=$({ ls "$source" && wanted_of_xen && cat "$driver_domain_files/virtio_backend.te"; } | key_of_stdin)
    is_made "$xen_image" "$key" && return
    say "building Xen $xen_series with CONFIG_IOREQ_SERVER (about a minute, once)"
    rm -rf "$tree"
    mkdir "$tree"
    tar -x --strip-components=1 -C "$tree" -f "$source"/*.orig.tar.xz
    if has_flask; then add_policy "$tree/tools/flask/policy/modules"; fi
    quietly "$out/build/xen-$xen_series.log" compile_xen "$tree/xen"
    mv "$tree/xen/xen" "$xen_image"
    rm -rf "$tree"
    made "$xen_image" "$key"
}

# Prints what is wanted of Xen's Kconfig.
wanted_of_xen() {
    if has_flask; then
        grep '^CONFIG_' "$driver_domain_files/xen.config"
    else
        printf '%s\n' CONFIG_EXPERT=y CONFIG_UNSUPPORTED=y CONFIG_IOREQ_SERVER=y
    fi
}

# add_policy DIRECTORY: our module of Xen's policy, beside the others.
add_policy() {
    cp "$driver_domain_files/virtio_backend.te" "$1/"
    sed -i 's/^domU = on$/&\nvirtio_backend = on/' "$1/modules.conf"
}

compile_xen() {
    local make=(make -C "$1" "XEN_TARGET_ARCH=arm64" "CROSS_COMPILE=$cross") missing
    "${make[@]}" defconfig
    wanted_of_xen >>"$1/.config"
    "${make[@]}" olddefconfig
    missing=$(wanted_of_xen | grep -vxF -f "$1/.config") && { echo "Xen's Kconfig takes none of these: $missing"; return 1; }
    "${make[@]}" "-j$(nproc)"
}
