//! One aligned piece of the guest's address space, mapped as far as there is memory behind it.
//!
//! A chunk is immutable: when the guest's memory changes, the cache maps a new one, and the old one serves those who
//! hold it until the last lets go. Its drop unmaps, so it is dropped outside any lock.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::{
    AccessError, CHUNK_SIZE, MapError, Mapping, PAGE_SIZE, PageSource,
    address::{CHUNK_FRAMES, PAGE_LEN},
    budget::Reservation,
    stats::{Counter, Counters},
};

/// A set of a chunk's frames: bit i is its i-th.
type FrameSet = u16;
const _: () = assert!(FrameSet::BITS as u64 == CHUNK_FRAMES, "a bit for each frame");

/// The mapped frames of one chunk.
pub(crate) struct Chunk {
    number: u64,
    generation: u64,
    direct_io_capable: bool,
    last_used: AtomicU64,
    /// One, unless the source's memory for these frames lies in several places.
    extents: SmallVec<[Extent; 1]>,
    /// Declared last, hence dropped last: the budget has the pages back once they are unmapped.
    reservation: Reservation,
}

/// Frames that one mapping shows, in ascending order without gaps.
struct Extent {
    frames: FrameSet,
    mapping: Box<dyn Mapping>,
}

/// Guest pages that are neighbours, at host addresses that are neighbours too.
pub(crate) struct Run<'a> {
    /// Guest address of the first byte.
    pub(crate) address: u64,
    pub(crate) memory: VolatileSlice<'a>,
}

impl Chunk {
    /// Maps what there is of chunk `number`: one call if all of it is memory, two if it has holes.
    pub(crate) fn map(
        source: &dyn PageSource,
        number: u64,
        generation: u64,
        mut reservation: Reservation,
        counters: &Counters,
    ) -> Result<Self, AccessError> {
        let mut extents = SmallVec::new();
        let mut wanted = FrameSet::MAX;
        while wanted != 0 {
            let frames: SmallVec<[u64; FrameSet::BITS as usize]> =
                members(wanted).map(|frame| number * CHUNK_FRAMES + frame).collect();
            counters.add(Counter::MapCalls, 1);
            let settled = match source.map(&frames) {
                Ok(mapping) => {
                    let extent = Extent::new(wanted, mapping);
                    let frames = extent.frames;
                    extents.push(extent);
                    frames
                }
                Err(MapError::Holes(mask)) => {
                    let holes = select(wanted, mask);
                    counters.add(Counter::Holes, holes.count_ones().into());
                    holes
                }
                Err(MapError::Busy) => return Err(AccessError::Busy),
                Err(MapError::Host(error)) => return Err(AccessError::Host(Arc::new(error))),
            };
            if settled == 0 {
                let error = io::Error::other("The page source mapped nothing and named no hole");
                return Err(AccessError::Host(Arc::new(error)));
            }
            wanted &= !settled;
        }
        let pages = extents.iter().map(|extent: &Extent| u64::from(extent.frames.count_ones())).sum();
        counters.add(Counter::PagesMapped, pages);
        reservation.shrink_to(pages);
        let direct_io_capable = source.direct_io_capable();
        Ok(Self { number, generation, direct_io_capable, last_used: AtomicU64::new(0), extents, reservation })
    }

    /// Which chunk of the guest's address space this is.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The generation of the guest's memory that it shows.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn direct_io_capable(&self) -> bool {
        self.direct_io_capable
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.reservation.pages() * PAGE_SIZE
    }

    /// Notes when it was last used, in ticks of the cache's clock.
    pub(crate) fn touch(&self, now: u64) {
        self.last_used.store(now, Relaxed);
    }

    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Relaxed)
    }

    /// Whether the byte at `offset` is mapped.
    pub(crate) fn covers(&self, offset: u64) -> bool {
        let page = page_of(offset);
        self.extents.iter().any(|extent| extent.has(page))
    }

    /// The longest run of mapped pages around the byte at `offset`; `None` if that is a hole.
    pub(crate) fn run(&self, offset: u64) -> Option<Run<'_>> {
        let page = page_of(offset);
        let Extent { frames, mapping } = self.extents.iter().find(|extent| extent.has(page))?;
        let first = page + 1 - (frames << (FrameSet::BITS - 1 - page)).leading_ones();
        let pages = (frames >> first).trailing_ones();
        let mapped_before = (frames & !(FrameSet::MAX << first)).count_ones();
        let memory = mapping.memory().subslice(bytes(mapped_before), bytes(pages)).ok()?;
        Some(Run { address: self.number * CHUNK_SIZE + u64::from(first) * PAGE_SIZE, memory })
    }
}

impl Extent {
    /// As many of the lowest `wanted` frames as the mapping is long.
    fn new(wanted: FrameSet, mapping: Box<dyn Mapping>) -> Self {
        let pages = mapping.memory().len() / bytes(1);
        Self { frames: members(wanted).take(pages).fold(0, |set, frame| set | 1 << frame), mapping }
    }

    fn has(&self, page: u32) -> bool {
        self.frames >> page & 1 == 1
    }
}

/// The frames of `set`, ascending.
fn members(set: FrameSet) -> impl Iterator<Item = u64> {
    (0..CHUNK_FRAMES).filter(move |frame| set >> frame & 1 == 1)
}

/// The members of `set` whose rank in it is set in `mask`.
fn select(set: FrameSet, mask: u64) -> FrameSet {
    members(set).enumerate().filter(|(rank, _)| mask >> rank & 1 == 1).fold(0, |all, (_, frame)| all | 1 << frame)
}

/// Which page of the chunk `offset` is in; the modulo makes any number safe to shift by.
fn page_of(offset: u64) -> u32 {
    (offset / PAGE_SIZE % CHUNK_FRAMES) as u32
}

const fn bytes(pages: u32) -> usize {
    pages as usize * PAGE_LEN
}
