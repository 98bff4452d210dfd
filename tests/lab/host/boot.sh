# The emulated machine: Xen, Dom0, and the directory that Dom0 has as /lab. Sourced after all
# others.
# shellcheck shell=bash

# build_lab SERIES...: builds what is not built yet, so that use_xen and boot can follow.
build_lab() {
    local series name
    claim_directories
    build_kernel
    if [[ $wants_linux == yes ]]; then build_linux; fi
    build_guests
    for series in "$@"; do
        use_xen "$series"
        build_xen
        build_dom0
        if has_flask; then build_driver_domain; fi
        if has_systemd; then add_systemd; fi
    done
    if [[ $wants_next_version == yes ]]; then build_next_version; fi
    build_program
    for name in "${wanted_test_programs[@]}"; do build_test_program "$name"; done
    if [[ -n $wanted_revision ]]; then build_revision; fi
    release_cache
    sort -u -o "$packages_file" "$packages_file"
    for series in "$@"; do
        use_xen "$series"
        fill_share
    done
}

# Keeps other runs out of our output until we end, and out of the cache until release_cache.
claim_directories() {
    mkdir -p "$out" "$cache"
    exec {out_lock}>"$out/lock"
    flock --nonblock "$out_lock" || die "another run uses $out; wait for it"
    exec {cache_lock}>"$cache/lock"
    flock --nonblock "$cache_lock" || { say "waiting for another tree's run that uses $cache" && flock "$cache_lock"; }
}

# To be called once all is built: from here on the cache is only read.
release_cache() { exec {cache_lock}>&-; }

# Fills the directory that Dom0 sees.
fill_share() {
    local name
    rm -rf "$share"
    mkdir -p "$logs/consoles"
    ln -sfn share/logs "$logs_link"
    ln "$kernel_image" "$share/Image"
    if [[ $wants_linux == yes ]]; then ln "$own_kernel_image" "$share/Image-own"; fi
    ln "$program" "$share/xen-virtio"
    if [[ $wants_next_version == yes ]]; then install -D "$next_program" "$share/next/xen-virtio"; fi
    if [[ -n $wanted_revision ]]; then install -D "$revision_program" "$share/base/xen-virtio"; fi
    cp -r "$lab/dom0" "$lab/backend" "$lab/cases" "$share/"
    install_test_programs "$share"
    for name in guest guest-fio guest-net guest-all; do
        { pack_scripts "$lab"/cases/*.sh && cat "$out/$name.cpio"; } >"$share/$name.cpio"
    done
    if has_systemd; then cp "$repo/guest-config/xen-virtio.service" "$share/"; fi
    if has_flask; then
        cp "$driver_domain_files"/*.cfg "$share/"
        { pack_driver_domain && cat "$driver_domain_initrd"; } >"$share/driver-domain.cpio"
    fi
}

# Our program and the scripts that it is driven by in a driver domain, to go before the other programs.
pack_driver_domain() {
    local root=$out/root-scripts
    rm -rf "$root"
    mkdir -p "$root/lab" "$root/usr/sbin"
    cp "$lab/guest/lib.sh" "$root/lab/"
    cp -r "$lab/backend" "$root/lab/"
    cp "$program" "$root/usr/sbin/"
    pack "$root"
    rm -rf "$root"
}

# pack_scripts CASE...: an initramfs with what guests run in these cases, to go before the one
# with programs.
pack_scripts() {
    local root=$out/root-scripts
    rm -rf "$root"
    mkdir -p "$root/lab/cases"
    cp "$lab/guest/lib.sh" "$root/lab/"
    cp "$@" "$root/lab/cases/"
    install_test_programs "$root/usr/sbin"
    pack "$root"
    rm -rf "$root"
}

# One emulated CPU: with two, each trap wakes the other CPU through the host's scheduler, and
# disks are four to ten times slower.
one_cpu=(-smp 1 -accel "tcg,thread=single")

# watch READER SECONDS SCRIPT [QEMU OPTION...]: boots the Xen in use, runs /lab/SCRIPT in Dom0
# and powers off; READER gets the console on its standard input. The machine ends with us.
watch() {
    local reader=$1 console status=0
    shift
    exec {console}< <(boot "$@" 2>&1)
    machine=$!
    trap 'kill "$machine" 2>/dev/null' EXIT
    "$reader" <&"$console" || status=$?
    exec {console}<&-
    trap - EXIT
    return "$status"
}

# What Dom0 runs: Debian's kernel, or build_linux's. Its second CPU is off until a case puts it on.
dom0_kernel=$kernel_image

boot() {
    local seconds=$1 script=$2
    shift 2
    exec timeout --foreground --kill-after=5 "$seconds" qemu-system-aarch64 \
        -machine virt,virtualization=on,gic-version=3 -cpu cortex-a57 -m 6144 \
        -display none -serial stdio -monitor none -net none -no-reboot \
        -kernel "$xen_image" \
        -append "dom0_mem=1536M dom0_max_vcpus=2 console=dtuart loglvl=info guest_loglvl=info bootscrub=0" \
        -device "guest-loader,addr=0x49000000,kernel=$dom0_kernel,bootargs=console=hvc0 rdinit=/init quiet maxcpus=1 lab.script=$script" \
        -device "guest-loader,addr=0x50000000,initrd=$booted_initrd" \
        -fsdev "local,id=lab,path=$share,security_model=none" \
        -device virtio-9p-device,fsdev=lab,mount_tag=lab \
        "$@" </dev/null
}
