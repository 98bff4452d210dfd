# What the guest of the case power-cut does: it makes files durable in the ways that programs do, and says so.
# shellcheck shell=sh

# promise PLACE WORDS: tells the recorder what is durable, by a write to the disk that is for this. Each of those that
# promise at a time has a place of its own.
promise() {
    promise_place=$1
    shift
    echo "$*" | dd of=/dev/vda bs=4096 seek="$promise_place" conv=sync,notrunc,fsync 2>/dev/null
}

# work ROUNDS: on both disks at a time.
work() {
    work_on 1 /dev/vdb 1024 "$1" &
    first=$!
    work_on 2 /dev/vdc 4096 "$1" && wait "$first"
}

# The reader that looks at what is left knows no unwritten extents (dioread_lock).
# work_on NUMBER DEVICE BLOCK-SIZE ROUNDS: makes a file system and works in it, in several ways at a time.
work_on() {
    disk=$1 device=$2 rounds=$4 root=/tmp/disk-$1 writers=
    /usr/sbin/mke2fs -q -t ext4 -b "$3" "$device" && mkdir "$root" && mount -t ext4 -o discard,dioread_lock "$device" "$root" || return 1
    (cd "$root" && mkdir created replaced appended blocks rows) && sync && promise $((disk * 8)) "$disk made" || return 1
    writer=0
    for way in create replace append overwrite transact; do
        writer=$((writer + 1))
        "$way" $((disk * 8 + writer)) &
        writers="$writers $!"
    done
    for writer in $writers; do
        wait "$writer" || return 1
    done
    umount "$root"
}

# whole PATH VERSION BYTES: contents that tell what they should be.
whole() { yes "$1 $2 $3" | head -c "$3"; }

# block PATH INDEX VERSION: the same, 4 KiB of which each sector tells.
block() { yes "$(printf '%-511s' "$1 $2 $3")" | head -c 4096; }

# put_block FILE INDEX: overwrites a block in place, durably.
put_block() { dd of="$1" bs=4096 count=1 seek="$2" iflag=fullblock conv=notrunc,fsync 2>/dev/null; }

# The ways, each in a process of its own, given its place to promise from.

# Files come, and go again after a while.
create() {
    set -e
    place=$1 number=0
    while [ "$number" -lt "$rounds" ]; do
        number=$((number + 1)) path=/created/$number
        whole "$path" 1 $((number * 977 % 20000 + 100)) >"$root$path"
        sync "$root$path"
        sync "$root/created"
        promise "$place" "$disk whole $path 1"
        [ "$number" -gt 6 ] || continue
        path=/created/$((number - 6))
        promise "$place" "$disk free $path"
        rm "$root$path"
        sync "$root/created"
        promise "$place" "$disk gone $path"
    done
}

# A new version takes the name of the old one.
replace() {
    set -e
    place=$1 version=0
    while [ "$version" -lt "$rounds" ]; do
        version=$((version + 1))
        for path in /replaced/a /replaced/b; do
            whole "$path" "$version" $((version * 1237 % 30000 + 100)) >"$root$path.new"
            sync "$root$path.new"
            mv "$root$path.new" "$root$path"
            sync "$root/replaced"
            promise "$place" "$disk whole $path $version"
        done
    done
}

append() {
    set -e
    place=$1 count=0 path=/appended/log
    : >"$root$path"
    sync "$root/appended"
    while [ "$count" -lt "$((rounds * 2))" ]; do
        count=$((count + 1))
        printf '%-99s\n' "$path $count" >>"$root$path"
        sync -d "$root$path"
        promise "$place" "$disk lines $path $count"
    done
}

overwrite() {
    set -e
    place=$1 version=0 path=/blocks/file
    : >"$root$path"
    sync "$root/blocks"
    while [ "$version" -lt "$((rounds * 2))" ]; do
        version=$((version + 1)) index=$((version % 5))
        block "$path" "$index" "$version" | put_block "$root$path" "$index"
        promise "$place" "$disk block $path $index $version"
    done
}

# As a database does it: a row goes to the journal before it goes to the table.
transact() {
    set -e
    place=$1 table=/rows/table journal=$root/rows/journal
    for index in 0 1 2; do
        block "$table" "$index" 1 | put_block "$root$table" "$index"
    done
    : >"$journal"
    sync "$root/rows"
    for index in 0 1 2; do promise "$place" "$disk row $index 1"; done
    version=1
    while [ "$version" -lt "$rounds" ]; do
        version=$((version + 1)) index=$((version % 3))
        block "$table" "$index" "$version" | put_block "$journal" 0
        block "$table" "$index" "$version" | put_block "$root$table" "$index"
        promise "$place" "$disk row $index $version"
    done
}
