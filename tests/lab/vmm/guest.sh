# What the guests of the cases without Xen run when they are told to.
# shellcheck shell=sh

# has_written DISK SECTORS: whether so much has been written to the disk since it is there.
has_written() {
    # shellcheck disable=SC2046 # fields are words
    set -- "$2" $(cat "/sys/block/$1/stat")
    [ "$8" -ge "$1" ]
}
