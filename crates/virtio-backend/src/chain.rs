//! A descriptor chain, from the ring to a [`Request`].

use guest_memory::{Access, View};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};

use crate::request::Chain;
use crate::{GuestFault, Request};

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = size_of::<Descriptor>();

/// A descriptor table: the queue's own, or the indirect one of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// Guest address.
    pub(crate) start: u64,
    /// Descriptors.
    pub(crate) len: u16,
}

/// What a chain is held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Descriptors.
    pub(crate) descriptors: usize,
    /// Bytes, both directions together.
    pub(crate) bytes: u64,
}

/// The head that stands at `position` of the available ring (§2.7.6), counted modulo 2^16; `None` if it cannot be read.
pub(crate) fn head_at(queue: &Queue, view: &View, position: u16) -> Option<u16> {
    let slot = position.checked_rem(queue.size())?;
    // Behind flags and index.
    let at = queue.avail_ring().checked_add(4 + 2 * u64::from(slot))?;
    view.get::<u16>(at).ok().map(u16::from_le)
}

/// Walks the chain whose head `request` has, and nothing else of, checking it as §2.7.4 and §2.7.5 want it, and pins what
/// it describes.
pub(crate) fn resolve(request: &mut Request, mut table: Table, view: &View, limits: Limits) -> Result<(), GuestFault> {
    let Chain { head, is_replay: _, readable, writable, pieces, readable_descriptors } = &mut **request;
    let head = *head;
    let malformed = |what| GuestFault::Chain { head, what };
    let (mut index, mut left, mut is_indirect) = (head, table.len, false);
    let (mut bytes, mut in_writable_part) = (0u64, false);
    loop {
        let descriptor = match left {
            0 => None,
            _ => table.descriptor(view, index),
        };
        let descriptor = descriptor.ok_or_else(|| malformed("loops, leaves its table or cannot be read"))?;
        if descriptor.refers_to_indirect_table() {
            let indirect = Table::indirect(&descriptor).filter(|_| !is_indirect);
            table = indirect.ok_or_else(|| malformed("refers to a table that is none, or to one in another"))?;
            (index, left, is_indirect) = (0, table.len, true);
            continue;
        }
        bytes += u64::from(descriptor.len());
        if pieces.len() == limits.descriptors {
            return Err(malformed("has more descriptors than the largest queue"));
        }
        // Before anything is mapped: a 4 GiB descriptor costs nothing.
        if bytes > limits.bytes {
            return Err(malformed("describes more bytes than the device allows"));
        }
        if in_writable_part && !descriptor.is_write_only() {
            return Err(malformed("has a readable descriptor behind a writable one"));
        }
        in_writable_part = descriptor.is_write_only();
        *readable_descriptors += usize::from(!in_writable_part);
        pieces.push((descriptor.addr(), usize::try_from(descriptor.len()).unwrap_or(usize::MAX)));
        if !descriptor.has_next() {
            break;
        }
        (index, left) = (descriptor.next(), left - 1);
    }
    let unusable = |source| GuestFault::Memory { head, source };
    let (to_read, to_write) = pieces.split_at(*readable_descriptors);
    view.pin(to_read, Access::Read, readable).map_err(unusable)?;
    view.pin(to_write, Access::Write, writable).map_err(unusable)
}

impl Table {
    /// A queue's own.
    pub(crate) fn of(queue: &Queue) -> Self {
        Self { start: queue.desc_table(), len: queue.size() }
    }

    /// The table that a descriptor refers to (§2.7.5.3); `None` if its length is not that of one.
    fn indirect(descriptor: &Descriptor) -> Option<Self> {
        let bytes = usize::try_from(descriptor.len()).ok()?;
        // An index has 16 bits.
        let len = u16::try_from(bytes / DESCRIPTOR).ok()?;
        bytes.is_multiple_of(DESCRIPTOR).then_some(Self { start: descriptor.addr().0, len })
    }

    /// The descriptor of this index, if there is one and it can be read.
    pub(crate) fn descriptor(&self, view: &View, index: u16) -> Option<Descriptor> {
        let at = self.start.checked_add(DESCRIPTOR as u64 * u64::from(index)).filter(|_| index < self.len)?;
        view.get(at).ok()
    }
}
