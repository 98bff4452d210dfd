//! Who a worker is: a user of its guest's own, with no group, no capability, and no way to become anyone else.

use rustix::io::{self, Errno};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Becomes user and group `id`, and gives up all capabilities. For the process's only thread: another would stay what it is.
///
/// # Errors
/// The kernel says why not; then only a part is done.
pub(super) fn become_nobody(id: u32) -> io::Result<()> {
    empty_bounding_set()?;
    clear_ambient_capability_set()?;
    set_thread_groups(&[])?;
    let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // The kernel takes those that count from who stops being root. Not those that are for a program to inherit.
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    // Neither a process of the same user may look into this one, nor a core file be written.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn empty_bounding_set() -> io::Result<()> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // This kernel has no more.
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    Ok(())
}
