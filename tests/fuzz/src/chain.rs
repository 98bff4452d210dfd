//! What a descriptor chain describes, as a judge sees it who takes no offence at anything: whatever a device may have
//! touched of it is in here.

use std::ops::Range;

use crate::guest::{BASE, INDIRECT, NEXT, WRITE, descriptor};

/// Descriptors of a walk before it is called a loop.
const LONGEST: usize = 4096;

/// Parts of memory, as offsets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Vec<Range<usize>>,
    pub(crate) writable: Vec<Range<usize>>,
    pub(crate) tables: Vec<Range<usize>>,
}

impl Chain {
    /// Follows a chain as far as it leads, from a descriptor of a queue's `table`.
    pub(crate) fn walk(memory: &[u8], mut table: Range<usize>, head: u16) -> Self {
        let mut chain = Self { head, ..Self::default() };
        let mut next = usize::from(head);
        for _ in 0..LONGEST {
            let at = table.start + 16 * next;
            let Some(found) = descriptor(memory, at).filter(|_| at + 16 <= table.end) else { break };
            let part = part_of(memory, found.addr, found.len);
            if found.flags & INDIRECT != 0 {
                chain.tables.push(part.clone());
                (table, next) = (part, 0);
                continue;
            }
            if found.flags & WRITE != 0 {
                chain.writable.push(part)
            } else {
                chain.readable.push(part)
            }
            if found.flags & NEXT == 0 {
                break;
            }
            next = found.next.into();
        }
        chain
    }

    pub(crate) fn writable_len(&self) -> usize {
        self.writable.iter().map(Range::len).sum()
    }
}

/// What of a buffer is memory.
fn part_of(memory: &[u8], addr: u64, len: u32) -> Range<usize> {
    let end = BASE + memory.len() as u64;
    let start = addr.clamp(BASE, end);
    let stop = addr.saturating_add(len.into()).clamp(start, end);
    (start - BASE) as usize..(stop - BASE) as usize
}

/// Whether the device is to write, for one of these chains, to what another one is found by: where `is_kept`, or in a
/// table. Then it has been given leave to make of the chains what it likes.
pub(crate) fn are_tangled(chains: &[Chain], is_kept: impl Fn(&Range<usize>) -> bool) -> bool {
    let tables: Vec<_> = chains.iter().flat_map(|chain| &chain.tables).collect();
    let mut writable = chains.iter().flat_map(|chain| &chain.writable).filter(|part| !part.is_empty());
    writable.any(|part| is_kept(part) || tables.iter().any(|table| meet(table, part)))
}

pub(crate) fn meet(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start.max(other.start) < one.end.min(other.end)
}

/// Panics if memory has changed where nothing was given for writing.
pub(crate) fn untouched_memory_is_untouched(
    before: &[u8],
    after: &[u8],
    may_change: impl Iterator<Item = Range<usize>>,
) {
    let mut open = vec![false; before.len()];
    may_change.for_each(|part| open[part].fill(true));
    const PIECE: usize = 256;
    let pieces = before.chunks(PIECE).zip(after.chunks(PIECE)).enumerate();
    for (number, (before, after)) in pieces.filter(|(_, (before, after))| before != after) {
        let touched = (0..PIECE).find(|at| before[*at] != after[*at] && !open[number * PIECE + at]);
        assert!(touched.is_none(), "memory at {:#x} was written", number * PIECE + touched.unwrap_or_default());
    }
}
