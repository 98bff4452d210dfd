//! How each piece of a request's memory is reached: frames through the map cache, granted pages by a mapping or a copy.

use smallvec::SmallVec;
use vm_memory::GuestAddress;

use crate::{
    AccessError,
    address::PAGE_LEN,
    grants::{is_grant, pages_of},
    scratch::place,
};

/// A piece that is no longer than this is copied whatever comes with it: a header, a status.
const COPIED_ALWAYS: usize = 512;

/// Where each piece is going to be.
pub(crate) struct Layout {
    pub(crate) places: SmallVec<[Place; 4]>,
    /// Granted pages to be mapped, one behind the other.
    pub(crate) references: SmallVec<[u32; 32]>,
    /// Bytes to be copied, gaps for alignment included.
    pub(crate) copied: usize,
}

/// Where a piece is going to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the map cache.
    Frames,
    /// This far into the memory for copies.
    Copied(usize),
    /// This far into the mapping of granted pages.
    Mapped(usize),
}

impl Layout {
    /// Lays out pieces of guest memory, of which no more than `limit` bytes may be taken. The granted ones that are not
    /// [small](COPIED_ALWAYS) are copied if they are no more bytes than `copied_together`, else mapped.
    pub(crate) fn of(
        pieces: &[(GuestAddress, usize)],
        copied_together: usize,
        limit: u64,
    ) -> Result<Self, AccessError> {
        let granted = || pieces.iter().filter(|(GuestAddress(address), _)| is_grant(*address)).map(|&(_, len)| len);
        let total = granted().fold(0, usize::saturating_add);
        if total as u64 > limit {
            return Err(AccessError::TooLarge { len: total, limit });
        }
        let is_small = granted().filter(|len| *len > COPIED_ALWAYS).sum::<usize>() <= copied_together;
        let mut layout = Self { places: SmallVec::new(), references: SmallVec::new(), copied: 0 };
        for &(GuestAddress(address), len) in pieces {
            // Where there is not a byte, there is nothing to be reached, and nothing is added.
            let pages = if len > 0 { pages_of(address, len)? } else { None };
            let place = match pages {
                None => Place::Frames,
                Some(_) if is_small || len <= COPIED_ALWAYS => {
                    let at = place(layout.copied, len);
                    layout.copied = at + len;
                    Place::Copied(at)
                }
                Some((references, offset)) => {
                    let at = layout.references.len() * PAGE_LEN + offset;
                    layout.references.extend(references);
                    Place::Mapped(at)
                }
            };
            layout.places.push(place);
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(reference: u64, offset: u64, len: usize) -> (GuestAddress, usize) {
        (GuestAddress(1 << 63 | reference << 12 | offset), len)
    }

    fn layout(pieces: &[(GuestAddress, usize)]) -> (Vec<Place>, Vec<u32>, usize) {
        let layout = Layout::of(pieces, 4096, 1 << 20).unwrap();
        (layout.places.to_vec(), layout.references.to_vec(), layout.copied)
    }

    #[test]
    fn a_small_request_is_copied_with_its_sectors_aligned() {
        let pieces = [granted(1, 100, 16), granted(9, 0, 4096), granted(3, 4095, 1)];
        let places = vec![Place::Copied(0), Place::Copied(4096), Place::Copied(8192)];
        assert_eq!(layout(&pieces), (places, vec![], 8193));
    }

    #[test]
    fn of_a_large_request_the_small_pieces_are_copied_and_the_others_mapped_together() {
        let pieces =
            [granted(7, 100, 16), granted(20, 0xe00, 4096), (GuestAddress(0x4000_0000), 99), granted(5, 0, 4096)];
        let places = vec![Place::Copied(0), Place::Mapped(0xe00), Place::Frames, Place::Mapped(8192)];
        assert_eq!(layout(&pieces), (places, vec![20, 21, 5], 16));
    }

    #[test]
    fn b02_more_than_may_be_taken_is_refused_before_any_reference_is_counted() {
        let huge = [granted(1, 0, usize::MAX), granted(1, 0, usize::MAX)];
        assert!(matches!(Layout::of(&huge, usize::MAX, 1 << 20), Err(AccessError::TooLarge { .. })));
    }
}
