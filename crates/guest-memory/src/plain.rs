//! Guest memory that is mapped already: a vhost-user front-end's regions, or a test's.

use std::{io, sync::Arc};

use vm_memory::VolatileSlice;

use crate::{AnonymousMapping, MapError, Mapping, PAGE_SIZE, PageSource, Route, address::PAGE_LEN};

/// Guest memory that is mapped as a whole, in one or several regions. Mapping a piece of it costs nothing.
pub struct PlainMemory {
    /// By ascending address; they do not overlap.
    regions: Vec<Region>,
}

struct Region {
    first_frame: u64,
    frames: u64,
    mapping: Arc<dyn Mapping>,
}

/// Why regions cannot be a guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Start or length is not a multiple of the page size, or the length is zero.
    #[error("Memory region of {len:#x} bytes at {start:#x} is not made of whole pages")]
    NotPages {
        /// Guest address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The region passes the highest address of a guest frame, 2^63.
    #[error("Memory region of {len:#x} bytes at {start:#x} reaches into the addresses of grants")]
    TooHigh {
        /// Guest address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Two regions claim the same address.
    #[error("Two memory regions overlap at {address:#x}")]
    Overlap {
        /// The lowest address that both have.
        address: u64,
    },
    /// No memory for a region.
    #[error("Allocating a memory region failed")]
    Allocate(#[from] io::Error),
}

impl PlainMemory {
    /// Memory made of regions, each a guest address and what is mapped for it, in any order.
    pub fn new(regions: impl IntoIterator<Item = (u64, Arc<dyn Mapping>)>) -> Result<Self, LayoutError> {
        let mut regions =
            regions.into_iter().map(|(start, mapping)| Region::new(start, mapping)).collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(|region| region.first_frame);
        for pair in regions.windows(2) {
            if let [low, high] = pair
                && low.first_frame + low.frames > high.first_frame
            {
                return Err(LayoutError::Overlap { address: high.first_frame * PAGE_SIZE });
            }
        }
        Ok(Self { regions })
    }

    /// Zeroed memory at these guest addresses and lengths.
    pub fn anonymous(ranges: &[(u64, usize)]) -> Result<Self, LayoutError> {
        let regions = ranges.iter().map(|&(start, len)| {
            let mapping: Arc<dyn Mapping> = Arc::new(AnonymousMapping::new(len)?);
            Ok((start, mapping))
        });
        Self::new(regions.collect::<io::Result<Vec<_>>>()?)
    }

    fn region(&self, frame: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|region| region.first_frame <= frame);
        self.regions.get(after.checked_sub(1)?).filter(|region| region.has(frame))
    }
}

impl Region {
    fn new(start: u64, mapping: Arc<dyn Mapping>) -> Result<Self, LayoutError> {
        let len = mapping.memory().len() as u64;
        if len == 0 || !start.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::NotPages { start, len });
        }
        let last = start.checked_add(len - 1);
        if !last.is_some_and(|last| matches!(Route::of(last), Route::Frame { .. })) {
            return Err(LayoutError::TooHigh { start, len });
        }
        Ok(Self { first_frame: start / PAGE_SIZE, frames: len / PAGE_SIZE, mapping })
    }

    fn has(&self, frame: u64) -> bool {
        frame.wrapping_sub(self.first_frame) < self.frames
    }
}

impl PageSource for PlainMemory {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let mut holes = 0;
        for (index, &frame) in frames.iter().enumerate() {
            holes |= u64::from(self.region(frame).is_none()) << index;
        }
        match frames.first().and_then(|&first| Some((first, self.region(first)?))) {
            Some((first, region)) if holes == 0 => {
                let together = (first..).zip(frames).take_while(|&(next, &frame)| next == frame && region.has(frame));
                let whole = region.mapping.clone();
                Ok(Box::new(Part { whole, page: first - region.first_frame, pages: together.count() }))
            }
            _ => Err(MapError::Holes(holes)),
        }
    }

    fn direct_io_capable(&self) -> bool {
        true
    }
}

/// Pages of a region, which lives as long as any of them is in use.
struct Part {
    whole: Arc<dyn Mapping>,
    page: u64,
    pages: usize,
}

impl Mapping for Part {
    #[expect(clippy::cast_possible_truncation, reason = "within a region, which is in this process's memory")]
    fn memory(&self) -> VolatileSlice<'_> {
        let part = self.whole.memory().subslice((self.page * PAGE_SIZE) as usize, self.pages * PAGE_LEN);
        part.expect("a mapping keeps the length that the region was made with")
    }
}
