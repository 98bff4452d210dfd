//! A look ahead in the ring, for indirect tables that are granted: they are copied, all in one call, before their chains
//! are walked.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use guest_memory::{Route, View};
use smallvec::SmallVec;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::DESCRIPTOR;

/// What a look ahead found.
pub(crate) struct Ahead {
    /// How many chains there are to be taken. Those that come after the look are not to be walked before the next one, as
    /// their tables are not among these.
    pub(crate) chains: usize,
    /// Their granted indirect tables, and the lengths of these.
    pub(crate) tables: SmallVec<[(GuestAddress, usize); 8]>,
}

/// Looks at the next chains, `limit` at most. What is wrong with one is left for the walk to find: a table that is missing
/// here cannot be read there.
///
/// # Errors
/// The available ring cannot be read.
pub(crate) fn look_ahead(queue: &Queue, view: &View, limit: u16) -> Result<Ahead, virtio_queue::Error> {
    let available = queue.avail_idx(view, Ordering::Acquire)?;
    let ahead = (available - Wrapping(queue.next_avail())).0.min(limit).min(queue.size());
    let tables = (0..ahead).filter_map(|nth| table_of(queue, view, head(queue, view, nth)?)).collect();
    Ok(Ahead { chains: ahead.into(), tables })
}

/// The head of the chain that comes after `nth` others.
fn head(queue: &Queue, view: &View, nth: u16) -> Option<u16> {
    let slot = queue.next_avail().wrapping_add(nth).checked_rem(queue.size())?;
    // Behind flags and index (virtio 1.2 §2.7.6).
    let at = queue.avail_ring().checked_add(4 + 2 * u64::from(slot))?;
    view.read_obj::<u16>(GuestAddress(at)).ok().map(u16::from_le)
}

/// A chain's indirect table, which is what its last descriptor refers to (§2.7.5.3).
fn table_of(queue: &Queue, view: &View, head: u16) -> Option<(GuestAddress, usize)> {
    let mut index = head;
    for _ in 0..queue.size() {
        if index >= queue.size() {
            return None;
        }
        let at = queue.desc_table().checked_add(DESCRIPTOR as u64 * u64::from(index))?;
        let descriptor: Descriptor = view.read_obj(GuestAddress(at)).ok()?;
        if descriptor.refers_to_indirect_table() {
            // With one more than a chain may have, for the walk to find that it is too long.
            let longest = DESCRIPTOR * (usize::from(queue.max_size()) + 1);
            let len = usize::try_from(descriptor.len()).ok()?.min(longest);
            let is_granted = matches!(Route::of(descriptor.addr().0), Route::Grant { .. });
            return (is_granted && len > 0).then_some((descriptor.addr(), len));
        }
        if !descriptor.has_next() {
            return None;
        }
        index = descriptor.next();
    }
    None
}
