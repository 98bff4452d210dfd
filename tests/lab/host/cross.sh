# Our program, built for Dom0. Uses rustup's arm64 target where there is one or it can be
# fetched; else the Rust that Debian keeps current (rustc-web), unpacked into the cache, so
# that the host's packages and architectures stay as they are. Sourced after apt.sh.
# shellcheck shell=bash

rust_target=aarch64-unknown-linux-gnu
program=$out/cargo/$rust_target/release/xen-virtio
debian_rust=$cache/rust-debian

build_program() {
    local rustc
    rustc=$(find_cross_rustc)
    say "building xen-virtio for arm64"
    (
        cd "$repo" || exit
        export CARGO_TARGET_DIR=$out/cargo RUSTC=$rustc
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=${cross}gcc
        if [[ $rustc == "$debian_rust"/* ]]; then
            LD_LIBRARY_PATH=$(compgen -G "$debian_rust/usr/lib/*-linux-gnu")
            export LD_LIBRARY_PATH
        fi
        quietly "$out/build/cargo-build.log" cargo build --release --locked --target "$rust_target" -p xen-virtio
    )
}

# Prints a compiler that has the standard library for arm64.
find_cross_rustc() {
    local rustc
    rustc=$(cd "$repo" && command -v rustc) || die "no Rust; install it by rustup, or by: apt-get install rustc-web cargo-web"
    if ! has_target "$rustc" && [[ ! -d $debian_rust ]]; then
        add_rustup_target || make_dir_once "$debian_rust" unpack_debian_rust
    fi
    has_target "$rustc" || rustc=$debian_rust/usr/bin/rustc
    printf '%s\n' "$rustc"
}

has_target() { [[ -n $(compgen -G "$(cd "$repo" && "$1" --print sysroot)/lib/rustlib/$rust_target/lib/libstd-*.rlib") ]]; }

# Where rustup has no way to its server it tries for minutes; we have a second way.
add_rustup_target() {
    command -v rustup >/dev/null || return 1
    say "asking rustup for the arm64 target"
    (cd "$repo" && timeout 120 rustup target add "$rust_target" >/dev/null 2>&1) ||
        { say "rustup cannot fetch it; taking Debian's Rust instead"; return 1; }
}

# Unpacks into directory $1 the compiler with the libraries it needs beside the C library,
# which is the host's, and the standard library for arm64.
unpack_debian_rust() {
    local apt_arch package
    apt_arch=$(dpkg --print-architecture)
    dpkg-deb --extract "$(fetch_package rustc-web)" "$1"
    fetch_with_dependencies libstd-rust-web-dev | grep -v '/libc6_' | while read -r package; do
        dpkg-deb --extract "$package" "$1"
    done
    apt_arch=arm64
    dpkg-deb --extract "$(fetch_package libstd-rust-web-dev)" "$1"
}
