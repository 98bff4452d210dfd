//! The ring of buffered writes (x86): `struct buffered_iopage` of xen/include/public/hvm/ioreq.h.
//!
//! Two free-running indices and 511 entries of 8 bytes. Xen adds entries and the write index, we add to
//! the read index; Xen also takes whole rings off both, in one 8-byte exchange, so that neither
//! overflows. Hence both are read as one word, and ours is only ever added to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use io_bus::Space;
use xen_ioctls::abi::ioreq::{BUFFER_SLOT_NUM, TYPE_COPY, TYPE_PIO};

use crate::page::{self, PageError};
use crate::request::{Access, Direction, Operand, Width};
use crate::xen::SharedPage;

/// Entries of the ring.
#[expect(clippy::cast_possible_truncation, reason = "511")]
const ENTRIES: u32 = BUFFER_SLOT_NUM as u32;

/// Both indices, as one word; ours is the lower half.
const INDICES: usize = 0;
const FIRST_ENTRY: usize = 8;
const ENTRY_SIZE: usize = 8;

/// Fields of an entry's first word: `type` in bits 0 to 7, `dir`, `size` (as a power of two), `addr`.
const READ: u32 = 1 << 9;
const SIZE_SHIFT: u32 = 10;
const SIZE_MASK: u32 = 3;
const ADDR_SHIFT: u32 = 12;

/// The consumer's end.
pub(crate) struct BufferedRing {
    page: Arc<dyn SharedPage>,
}

/// Something that Xen would not have put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadEntry {
    /// More entries than the ring has: all are dropped.
    #[error("Indices {read} and {written} of the buffered ring are too far apart")]
    Indices {
        /// Ours.
        read: u32,
        /// Xen's.
        written: u32,
    },
    /// Of an eight-byte write, only the first half is there.
    #[error("A buffered write ends in the middle")]
    Half,
    /// A type that is not buffered.
    #[error("Buffered request of type {0}")]
    Type(u8),
    /// A read, which cannot be posted.
    #[error("Buffered read")]
    Read,
}

impl BufferedRing {
    pub(crate) fn new(page: Arc<dyn SharedPage>) -> Result<Self, PageError> {
        page::check(page.as_ref())?;
        Ok(Self { page })
    }

    /// Takes what is in the ring now, at most one ring's worth, and gives each to `sink`. Says whether there was anything.
    pub(crate) fn drain(&self, mut sink: impl FnMut(Result<Access, BadEntry>)) -> bool {
        // Xen writes an entry before the index that covers it.
        let both = page::at(self.page.as_ref(), INDICES, |both: &AtomicU64| both.load(Ordering::Acquire));
        let (read, written) = (low(both), low(both >> 32));
        let queued = written.wrapping_sub(read);
        if queued > ENTRIES {
            self.advance(queued);
            sink(Err(BadEntry::Indices { read, written }));
            return true;
        }
        let mut done = 0;
        while done < queued {
            let head = self.entry(read.wrapping_add(done));
            let tail = (done + 1 < queued).then(|| self.entry(read.wrapping_add(done + 1)));
            let (access, used) = decode(head, tail);
            // Xen may use the place again from here on.
            self.advance(used);
            done += used;
            sink(access);
        }
        queued > 0
    }

    fn entry(&self, pointer: u32) -> u64 {
        let offset = FIRST_ENTRY + ENTRY_SIZE * (pointer % ENTRIES) as usize;
        page::at(self.page.as_ref(), offset, |entry: &AtomicU64| entry.load(Ordering::Relaxed))
    }

    fn advance(&self, entries: u32) {
        page::at(self.page.as_ref(), INDICES, |read: &AtomicU32| read.fetch_add(entries, Ordering::AcqRel));
    }
}

/// The write that starts with `entry`, and how many entries it takes.
fn decode(entry: u64, next: Option<u64>) -> (Result<Access, BadEntry>, u32) {
    let head = low(entry);
    let (width, entries) = match head >> SIZE_SHIFT & SIZE_MASK {
        0 => (Width::B1, 1),
        1 => (Width::B2, 1),
        2 => (Width::B4, 1),
        _ => (Width::B8, 2),
    };
    let value = match (entries, next) {
        (1, _) => entry >> 32,
        (_, Some(next)) => entry >> 32 | next >> 32 << 32,
        (_, None) => return (Err(BadEntry::Half), 1),
    };
    let space = match head.to_le_bytes()[0] {
        TYPE_PIO => Space::PortIo,
        TYPE_COPY => Space::Mmio,
        other => return (Err(BadEntry::Type(other)), entries),
    };
    if head & READ != 0 {
        return (Err(BadEntry::Read), entries);
    }
    let access = Access {
        space,
        addr: (head >> ADDR_SHIFT).into(),
        width,
        direction: Direction::Write,
        count: 1,
        operand: Operand::Immediate(value),
        descending: false,
    };
    (Ok(access), entries)
}

fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MMIO: u64 = 1;

    fn head(width_code: u64, addr: u64, data: u64) -> u64 {
        MMIO | width_code << 10 | addr << 12 | data << 32
    }

    #[test]
    fn a_write_carries_type_address_width_and_value() {
        let (access, entries) = decode(head(2, 0xb_8000, 0x1234_5678), None);
        let access = access.unwrap();
        assert_eq!((access.space, access.addr, access.width), (Space::Mmio, 0xb_8000, Width::B4));
        assert_eq!((access.operand, entries), (Operand::Immediate(0x1234_5678), 1));
    }

    #[test]
    fn an_eight_byte_write_takes_its_upper_half_from_the_next_entry() {
        let (access, entries) = decode(head(3, 0, 0x5566_7788), Some(head(3, 0, 0x1122_3344)));
        assert_eq!(access.unwrap().operand, Operand::Immediate(0x1122_3344_5566_7788));
        assert_eq!(entries, 2);
        assert_eq!(decode(head(3, 0, 0), None), (Err(BadEntry::Half), 1));
    }

    #[test]
    fn what_cannot_be_posted_is_refused() {
        assert_eq!(decode(8, None).0, Err(BadEntry::Type(8)));
        assert_eq!(decode(MMIO | u64::from(READ), None).0, Err(BadEntry::Read));
    }

    proptest! {
        #[test]
        fn any_entry_decodes_to_something_and_uses_no_more_than_there_is(head: u64, tail: Option<u64>) {
            let (access, entries) = decode(head, tail);
            prop_assert!(entries == 1 || entries == 2 && tail.is_some());
            if let Ok(access) = access {
                prop_assert!(access.addr < 1 << 20);
                prop_assert_eq!(access.direction, Direction::Write);
            }
        }
    }
}
