# Another revision of our program, to compare with. Sourced after cross.sh.
# shellcheck shell=bash

# last_release: prints the newest tag before what is checked out; nothing if there is none.
last_release() { git -C "$repo" describe --tags --abbrev=0 HEAD^ 2>/dev/null || true; }

# To be set before build_lab by who compares with one: a revision as git knows it.
wanted_revision=

# Builds its program for arm64, once, and sets revision_program to it.
build_revision() {
    local commit
    commit=$(git -C "$repo" rev-parse --verify --quiet "$wanted_revision^{commit}") ||
        die "there is no revision '$wanted_revision' here to compare with"
    make_dir_once "$cache/xen-virtio-$commit" compile_revision "$commit"
    revision_program=$cache/xen-virtio-$commit/xen-virtio
}

# compile_revision COMMIT DIRECTORY: of its own sources, without touching this tree's.
compile_revision() {
    local tree=$2/tree
    say "building xen-virtio of revision $1 for arm64"
    mkdir "$tree"
    git -C "$repo" archive "$1" | tar -x -C "$tree"
    (
        repo=$tree
        build_program_in "$tree/target" "$out/build/cargo-$1.log"
    )
    mv "$tree/target/$rust_target/release/xen-virtio" "$2/"
    rm -rf "$tree"
}
