//! A look ahead in the ring, for indirect tables that are granted: they are copied, all in one call, before their chains
//! are walked.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use guest_memory::{Route, View};
use smallvec::SmallVec;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::chain::{DESCRIPTOR, Table, head_at};

/// How many chains are available, `limit` at most. Those that come after the look are not to be walked before the next one,
/// as their tables are not known.
///
/// # Errors
/// The available ring cannot be read.
pub(crate) fn look_ahead(queue: &Queue, view: &View, limit: u16) -> Result<u16, virtio_queue::Error> {
    let available = queue.avail_idx(view, Ordering::Acquire)?;
    Ok((available - Wrapping(queue.next_avail())).0.min(limit).min(queue.size()))
}

/// The granted indirect tables of the next `chains` chains, and the lengths of these. What is wrong with a chain is left for
/// the walk to find: a table that is missing here cannot be read there.
pub(crate) fn tables_ahead(queue: &Queue, view: &View, chains: u16) -> SmallVec<[(GuestAddress, usize); 8]> {
    let table = |nth| table_of(queue, view, head_at(queue, view, queue.next_avail().wrapping_add(nth))?);
    (0..chains).filter_map(table).collect()
}

/// A chain's indirect table, if that is granted: it is what its last descriptor refers to (§2.7.5.3).
pub(crate) fn table_of(queue: &Queue, view: &View, head: u16) -> Option<(GuestAddress, usize)> {
    let mut index = head;
    for _ in 0..queue.size() {
        let descriptor = Table::of(queue).descriptor(view, index)?;
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
