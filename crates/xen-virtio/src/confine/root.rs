//! The file system: the worker's is one empty directory that nobody can write to.

use std::ffi::CStr;
use std::fs;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move, mount_remount, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};

/// Where the new root is made, among the mounts of this process alone: a directory that every host has.
const PLACE: &str = "/dev";

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// One inode is its root.
const OPTIONS: &CStr = c"mode=0555,size=4k,nr_inodes=1";

/// Puts an empty directory in the place of all of the host's files. The process needs mounts of its own.
///
/// # Errors
/// The kernel says why not.
pub(super) fn leave() -> anyhow::Result<()> {
    // What is mounted and unmounted from here on is so for us alone.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("mount --make-rprivate /")?;
    let below = mount_points()?;
    mount("none", PLACE, "tmpfs", FLAGS, OPTIONS).context("mount -t tmpfs")?;
    chdir(PLACE)?;
    match pivot_root(".", ".") {
        // The old root now lies upon the new one.
        Ok(()) => unmount(".", UnmountFlags::DETACH).context("umount of the old root")?,
        // The root is the kernel's first, an initramfs, which stays where it is.
        Err(Errno::INVAL) => cover(&below)?,
        Err(errno) => return Err(errno).context("pivot_root"),
    }
    chdir("/")?;
    mount_remount("/", FLAGS | MountFlags::RDONLY, OPTIONS).context("mount -o remount,ro /")
}

/// Lays the new root, which is the current directory, upon one that cannot be moved away. What is mounted `below` goes: the
/// host could not unmount it as long as we had it.
fn cover(below: &[String]) -> anyhow::Result<()> {
    mount_move(".", "/").context("mount --move of the new root")?;
    // At the root it would be the new one that goes.
    for point in below.iter().rev().filter(|point| *point != "/") {
        // What is mounted in another one is gone with that.
        let _ = unmount(point.as_str(), UnmountFlags::DETACH);
    }
    // There is no way out of it for a process that may not call chroot again.
    chroot(".").context("chroot")
}

/// Where something is mounted, the first mounted first.
fn mount_points() -> anyhow::Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("Cannot read /proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped).collect())
}

/// A name as it is, where the table of mounts has octal numbers for what would break its lines into other fields.
fn unescaped(name: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(name.to_owned(), |name, (escaped, plain)| name.replace(escaped, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_whatever_they_are_called() {
        assert_eq!(unescaped(r"/mnt/a\040name\011with\134all"), "/mnt/a name\twith\\all");
        assert!(mount_points().unwrap().contains(&"/proc".to_owned()));
    }
}
