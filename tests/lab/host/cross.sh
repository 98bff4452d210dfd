# What is built by cargo for Dom0: our program, and what only crates.io has. Uses rustup's arm64
# target where there is one or it can be fetched; else the Rust that Debian keeps current
# (rustc-web), unpacked into the cache, so that the host's packages and architectures stay as they
# are. Sourced after apt.sh.
# shellcheck shell=bash

rust_target=aarch64-unknown-linux-gnu
program=$out/cargo/$rust_target/release/xen-virtio
next_program=$out/cargo-next/xen-virtio
test_programs=$out/cargo-tests/$rust_target/fuzz
debian_rust=$cache/rust-debian
# A vhost-user backend of others.
vhost_device_rng=$cache/vhost-device-rng-0.1.0

build_program() {
    say "building xen-virtio for arm64"
    build_program_in "$out/cargo" "$out/build/cargo-build.log"
}

# build_program_in TARGET-DIRECTORY LOG: of the sources in $repo.
build_program_in() { cross_cargo "$2" build --target-dir "$1" --release --locked -p xen-virtio; }

# Whether a case upgrades to it.
wants_next_version=no

# The same sources as another version. Cargo keeps apart what a wrapper has compiled, but for the program itself: to be
# called before build_program.
build_next_version() {
    say "building xen-virtio for arm64 once more, as another version"
    RUSTC_WORKSPACE_WRAPPER=$lab/host/as-next-version build_program_in "$out/cargo" "$out/build/cargo-next.log"
    install -D "$program" "$next_program"
}

# Those of our programs that play somebody's part, and that a case runs: hostile-guest in guests, taken-over in Dom0.
wanted_test_programs=()

# They bring their C library along, of which guests have none.
build_test_program() {
    say "building $1 for arm64"
    RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" cross_cargo "$out/build/$1.log" build \
        --target-dir "$out/cargo-tests" --profile fuzz --locked -p "$1"
}

# install_test_programs DIRECTORY: those that are wanted.
install_test_programs() {
    local name
    for name in "${wanted_test_programs[@]}"; do install -D "$test_programs/$name" "$1/$name"; done
}

build_vhost_device_rng() { make_dir_once "$vhost_device_rng" install_crate; }

# install_crate DIRECTORY: builds the crate's version that the directory's name says.
install_crate() {
    local crate=${1##*/}
    crate=${crate%.partial}
    say "building $crate for arm64"
    cross_cargo "$out/build/$crate.log" install --target-dir "$out/cargo-$crate" --locked --no-track \
        --root "$1" "${crate%-*}@${crate##*-}"
    rm -rf "$out/cargo-$crate"
}

# cross_cargo LOG COMMAND ARGUMENT...: runs cargo for arm64.
cross_cargo() {
    local rustc
    rustc=$(find_cross_rustc)
    (
        cd "$repo" || exit
        export RUSTC=$rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=${cross}gcc
        if [[ $rustc == "$debian_rust"/* ]]; then
            LD_LIBRARY_PATH=$(compgen -G "$debian_rust/usr/lib/*-linux-gnu")
            export LD_LIBRARY_PATH
        fi
        quietly "$1" cargo "$2" --target "$rust_target" "${@:3}"
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
