//! How the memory that is shared with a backend is divided: a shadow ring for each queue, then room for the data of
//! each. Each queue has its own room, so that none starves another: what a network card receives into is in flight for
//! ever.

use std::ops::Range;

/// Bytes of a page. Rings and room for data are whole pages, as backends want them that do direct I/O.
pub(crate) const PAGE: usize = 4096;

/// Bytes of a descriptor (virtio 1.2 §2.7.5).
pub(crate) const DESCRIPTOR: usize = 16;

/// Buffers from this size on start on a page of their own; smaller ones stand one behind the other.
pub(crate) const LARGE: usize = 512;

/// What small buffers and tables are aligned to.
pub(crate) const ALIGNMENT: usize = 16;

/// Bytes of data that a queue has room for at the least.
const LEAST_DATA: usize = 64 << 10;

/// Where everything is, in bytes from the start of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    queues: u16,
    queue_size: u16,
    /// Pages of data of each queue.
    share: u32,
}

/// The parts of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingPlaces {
    pub(crate) descriptors: usize,
    pub(crate) available: usize,
    pub(crate) used: usize,
}

impl Layout {
    /// Shares `memory` bytes out among `queues`; `None` if they would have too little.
    pub(crate) fn new(queues: u16, queue_size: u16, memory: u64) -> Option<Self> {
        let pages = usize::try_from(memory).ok()? / PAGE;
        let rings = usize::from(queues) * ring_pages(queue_size);
        let share = pages.checked_sub(rings)?.checked_div(usize::from(queues))?;
        let is_enough = share >= least_share(queue_size);
        is_enough.then_some(Self { queues, queue_size, share: u32::try_from(share).ok()? })
    }

    /// The bytes of memory from which on [`Layout::new`] does.
    pub(crate) fn least_memory(queues: u16, queue_size: u16) -> u64 {
        (usize::from(queues) * (ring_pages(queue_size) + least_share(queue_size)) * PAGE) as u64
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.queues) * (ring_pages(self.queue_size) + self.share as usize) * PAGE
    }

    /// Where a queue's ring is.
    pub(crate) fn ring(&self, queue: u16) -> RingPlaces {
        let descriptors = usize::from(queue) * ring_pages(self.queue_size) * PAGE;
        let available = descriptors + DESCRIPTOR * usize::from(self.queue_size);
        RingPlaces { descriptors, available, used: descriptors + driver_pages(self.queue_size) * PAGE }
    }

    /// The pages that are for a queue's data.
    pub(crate) fn data(&self, queue: u16) -> Range<u32> {
        let rings = usize::from(self.queues) * ring_pages(self.queue_size);
        let start = rings + usize::from(queue) * self.share as usize;
        let start = u32::try_from(start).unwrap_or(u32::MAX);
        start..start.saturating_add(self.share)
    }

    /// The most bytes that a chain may have to be sure of room, once nothing else is in flight.
    pub(crate) fn longest_chain(&self) -> u64 {
        (self.share as usize * PAGE).saturating_sub(overhead(self.queue_size)) as u64
    }
}

/// Pages of the parts of a ring that the driver writes, the descriptors and the available ring.
fn driver_pages(size: u16) -> usize {
    (DESCRIPTOR * usize::from(size) + 6 + 2 * usize::from(size)).div_ceil(PAGE)
}

fn ring_pages(size: u16) -> usize {
    driver_pages(size) + (6 + 8 * usize::from(size)).div_ceil(PAGE)
}

/// What the data of a chain of `descriptors` may take beyond its bytes: a table of them, what alignment costs each, and
/// the step from small buffers to large ones.
fn overhead(descriptors: u16) -> usize {
    usize::from(descriptors) * (DESCRIPTOR + PAGE) + 2 * PAGE
}

fn least_share(queue_size: u16) -> usize {
    (overhead(queue_size) + LEAST_DATA).div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_all_is_within_the_memory() {
        for (queues, size) in [(1, 2), (1, 1024), (2, 128), (3, 256), (64, 64)] {
            let layout = Layout::new(queues, size, Layout::least_memory(queues, size) + 12345).unwrap();
            let mut end = 0;
            for queue in 0..queues {
                let RingPlaces { descriptors, available, used } = layout.ring(queue);
                assert_eq!(descriptors, end);
                assert_eq!((descriptors % PAGE, available % 2, used % PAGE), (0, 0, 0));
                assert!(available >= descriptors + 16 * usize::from(size));
                assert!(used >= available + 6 + 2 * usize::from(size));
                end = (used + 6 + 8 * usize::from(size)).next_multiple_of(PAGE);
            }
            for queue in 0..queues {
                let data = layout.data(queue);
                assert_eq!(data.start as usize * PAGE, end);
                end = data.end as usize * PAGE;
            }
            assert_eq!(end, layout.len());
        }
    }

    #[test]
    fn too_little_is_told_from_enough() {
        for (queues, size) in [(1, 2), (3, 256)] {
            let least = Layout::least_memory(queues, size);
            assert!(Layout::new(queues, size, least - 1).is_none());
            assert!(Layout::new(queues, size, least).unwrap().longest_chain() >= LEAST_DATA as u64);
        }
        assert_eq!(Layout::new(0, 64, u64::MAX), None);
    }
}
