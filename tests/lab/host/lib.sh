# Shared by the lab's scripts on the build machine. Sourced, never run.
# shellcheck shell=bash

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
lab=$repo/tests/lab
# Build products; `make clean` removes them.
out=$repo/target/lab
# Downloads, and what only depends on them; outlives the tree.
cache=${XEN_VIRTIO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xen-virtio}
# The Xens that the lab knows, each a hypervisor with Dom0's tools of the same version: that of
# Debian 12, whose libxl knows virtio disks only, and that of Debian 13, which has virtio=[...];
# this again with a policy, as driver domains need it. What follows on "4.20" is too much for one
# machine; a second one has the cases in which things end. Two more have systemd as Dom0's first process,
# that of the same Debian.
all_series=(4.17 4.17-systemd 4.20 4.20-ends 4.20-flask 4.20-systemd)
cross=aarch64-linux-gnu-

export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

# Loads what builds and boots the lab.
load_parts() {
    local part
    for part in apt xen linux rootfs driver-domain systemd cross revision boot; do
        # shellcheck source=/dev/null
        source "$lab/host/$part.sh"
    done
}

# use_xen SERIES: what is built and booted from here on.
use_xen() {
    xen_series=$1
    xen_version=${1%%-*}
    [[ " ${all_series[*]} " == *" $1 "* ]] || die "the lab has no Xen $1, but: ${all_series[*]}"
    case $xen_version in
    4.17) xen_release=bookworm ;;
    4.20) xen_release=trixie ;;
    esac
    series_out=$out/$1
    xen_image=$out/xen-$xen_version
    if has_flask; then xen_image=$xen_image-flask; fi
    dom0_initrd=$out/dom0-$xen_version.cpio
    booted_initrd=$dom0_initrd
    if has_systemd; then booted_initrd=$out/dom0-$xen_series.cpio; fi
    # The directory that Dom0 sees as /lab.
    share=$series_out/share
    logs=$share/logs
    # Where people look for them.
    logs_link=$series_out/logs
    mkdir -p "$series_out"
}

# Whether the Xen in use has the policy of guest-config/driver-domain.
has_flask() { [[ $xen_series == *-flask ]]; }
# Whether Dom0's first process is systemd there.
has_systemd() { [[ $xen_series == *-systemd ]]; }

say() { printf '%s\n' "lab: $*" >&2; }

die() {
    printf '%s\n' "lab: error: $*" >&2
    exit 1
}

# Runs a command with its output in a log file, which is shown only if it fails.
quietly() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "this command failed (whole log: $log): $*"
    fi
}

# Makes directory $1 by running "$2..." with a temporary name as last argument, so that
# the directory is either whole or absent. Does nothing when it is there already.
make_dir_once() {
    local dir=$1 tmp=$1.partial
    shift
    [[ -d $dir ]] && return
    rm -rf "$tmp"
    mkdir -p "$tmp"
    "$@" "$tmp"
    mv "$tmp" "$dir"
}

# A short key that changes with any word of the standard input.
key_of_stdin() { sha256sum | cut -c1-16; }
