# Debian's packages and sources, through apt configurations of the lab's own: neither the
# host's sources nor its architectures nor its package state are touched. The mirrors are
# those that the host's apt uses. Sourced after lib.sh.
# shellcheck shell=bash

apt_keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The release and the architecture that the functions below fetch of; set them locally for
# another. With -backports after a release's name, what has been backported to it is preferred.
apt_release=bookworm
apt_arch=arm64

apt_dir() { printf '%s\n' "$cache/apt-$apt_release-$apt_arch"; }
lab_apt_get() { APT_CONFIG=$(apt_dir)/apt.conf apt-get -qq "$@"; }
lab_apt_cache() { need_apt_lists && APT_CONFIG=$(apt_dir)/apt.conf apt-cache "$@"; }

# One line "URI SUITE" for each archive of our release: where the host's apt has its own.
# Backports are where the release is.
archives() {
    local host_release
    host_release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt fills in these names, not the shell
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        awk -v host="$host_release" -v ours="${apt_release%-backports}" -v wanted="$apt_release" '
            $3 != "main" || $2 !~ "^" host "($|-security$|-updates$)" { next }
            $2 == host { print $1, wanted }
            { sub(host, ours, $2); print $1, $2 }' |
        sort -u
}

write_apt_sources() {
    local archives uri suite
    archives=$(archives)
    [[ -n $archives ]] || die "apt knows no archive of this machine's Debian; the lab needs one (try: apt-get update)"
    while read -r uri suite; do
        printf '%s [signed-by=%s] %s %s main\n' \
            deb "$apt_keyring" "$uri" "$suite" deb-src "$apt_keyring" "$uri" "$suite"
    done <<<"$archives"
}

# An empty package state makes apt resolve dependencies as for an empty machine.
write_apt_configuration() {
    local dir
    dir=$(apt_dir)
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    : >"$dir/status"
    write_apt_sources >"$dir/sources.list"
    cat >"$dir/apt.conf" <<END
Dir::Etc::SourceList "$dir/sources.list";
Dir::Etc::SourceParts "-";
Dir::State "$dir";
Dir::State::Lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir";
Dir::Cache::archives "$dir/archives";
APT::Architecture "$apt_arch";
APT::Architectures { "$apt_arch"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
END
    # Apt takes nothing from backports unasked.
    if [[ $apt_release == *-backports ]]; then echo "APT::Default-Release \"$apt_release\";" >>"$dir/apt.conf"; fi
}

update_apt_lists() {
    say "fetching the package lists of Debian $apt_release for $apt_arch"
    write_apt_configuration
    quietly "$out/build/apt-update.log" lab_apt_get update
    touch "$(apt_dir)/lists.stamp"
}

# The lists are fetched once, and again when the archive no longer serves what they name.
need_apt_lists() { [[ -e $(apt_dir)/lists.stamp ]] || update_apt_lists; }

# Runs a download; if that fails, once more with fresh lists.
with_fresh_lists_if_needed() {
    "$@" 2>/dev/null || { update_apt_lists && "$@"; }
}

# Prints the paths of the packages named and of all they depend on, downloading what is missing.
fetch_with_dependencies() {
    local name_version
    need_apt_lists
    with_fresh_lists_if_needed lab_apt_get install --download-only --yes "$@" >/dev/null
    lab_apt_get install --simulate "$@" |
        sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1_\2/p' | sed 's/:/%3a/g' |
        while read -r name_version; do
            compgen -G "$(apt_dir)/archives/${name_version}_*.deb" || die "apt did not download $name_version"
        done
}

# Prints the path of one package, without what it depends on.
fetch_package() {
    local name=$1 version arch archives
    version=$(package_field "$name" Version)
    arch=$(package_field "$name" Architecture)
    archives=$(apt_dir)/archives
    local file=$archives/${name}_${version//:/%3a}_$arch.deb
    if [[ ! -e $file ]]; then
        (cd "$archives/partial" && with_fresh_lists_if_needed lab_apt_get download "$name" &&
            mv "${file##*/}" "$file") || die "apt could not download $name $version"
    fi
    printf '%s\n' "$file"
}

# package_field PACKAGE FIELD: what the lists say of its newest version.
package_field() { lab_apt_cache show --no-all-versions "$1" | sed -n "s/^$2: //p"; }

# Downloads the newest upstream source of package $1 whose version starts with $2 into directory
# $3, without Debian's changes. An archive may list a version that it does not serve yet, or no
# longer: then the next one.
fetch_source() (
    package=$1 series=$2
    cd "$3" || exit
    while read -r version; do
        lab_apt_get source --download-only --tar-only "$package=$version" >/dev/null 2>&1 && exit
    done < <(lab_apt_cache showsrc --only-source "$package" |
        sed -n 's/^Version: //p' | grep -F "$series." | sort -rV)
    die "Debian $apt_release's archive serves no source of $package $series"
)
