//! A descriptor chain, from the ring to a [`Request`].

use guest_memory::{Access, View};
use smallvec::SmallVec;
use vm_memory::GuestAddress;

use crate::{GuestFault, Request};

/// Walks a chain, checking it as §2.7.4 and §2.7.5 want it, and pins what it describes.
///
/// The iterator ends a malformed chain as silently as a good one; only a good one ends on a
/// descriptor without NEXT.
pub(crate) fn resolve(
    chain: &mut virtio_queue::DescriptorChain<&View>,
    view: &View,
    max_descriptors: usize,
    max_bytes: u64,
) -> Result<Request, GuestFault> {
    let head = chain.head_index();
    let malformed = |what| GuestFault::Chain { head, what };
    let mut request = Request {
        head,
        readable: Default::default(),
        writable: Default::default(),
        lengths: Default::default(),
        readable_descriptors: 0,
    };
    let mut pieces = SmallVec::<[(GuestAddress, usize); 4]>::new();
    let (mut bytes, mut unfinished, mut in_writable_part) = (0u64, true, false);
    for descriptor in chain {
        bytes += u64::from(descriptor.len());
        unfinished = descriptor.has_next();
        if pieces.len() == max_descriptors {
            return Err(malformed("has more descriptors than the largest queue"));
        }
        // Before anything is mapped: a 4 GiB descriptor costs nothing.
        if bytes > max_bytes {
            return Err(malformed("describes more bytes than the device allows"));
        }
        if in_writable_part && !descriptor.is_write_only() {
            return Err(malformed("has a readable descriptor behind a writable one"));
        }
        in_writable_part = descriptor.is_write_only();
        request.lengths.push(descriptor.len());
        request.readable_descriptors += usize::from(!in_writable_part);
        pieces.push((descriptor.addr(), usize::try_from(descriptor.len()).unwrap_or(usize::MAX)));
    }
    if unfinished {
        return Err(malformed("loops, leaves its table or cannot be read"));
    }
    let unusable = |source| GuestFault::Memory { head, source };
    let (readable, writable) = pieces.split_at(request.readable_descriptors);
    view.pin(readable, Access::Read, &mut request.readable).map_err(unusable)?;
    view.pin(writable, Access::Write, &mut request.writable).map_err(unusable)?;
    Ok(request)
}
