//! One descriptor chain, resolved.

use std::fmt;

use guest_memory::Buffers;
use smallvec::SmallVec;

/// A request the driver made: checked, bounded, and with its memory pinned as long as it lives.
///
/// It may outlive the pass that took it and be finished on completion of asynchronous I/O; it ends
/// in [`crate::Ring::push`]. What it describes is whatever the driver keeps writing there, so a
/// header is copied out once and judged as copied.
#[must_use = "a request that is not pushed back is lost to the driver"]
pub struct Request {
    /// Index of the chain's first descriptor, which names the request to the driver.
    pub(crate) head: u16,
    /// The device-readable part.
    pub readable: Buffers,
    /// The device-writable part.
    pub writable: Buffers,
    /// The lengths of the chain's descriptors, in its order: those of the readable part, then the others.
    pub(crate) lengths: SmallVec<[u32; 4]>,
    /// How many of them are of the readable part.
    pub(crate) readable_descriptors: usize,
}

impl Request {
    /// Index of the chain's first descriptor: below the queue's size, unique among those in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How the driver cut the readable part up: the length of each descriptor. A device does not look at it (§2.7.4.2);
    /// who hands the request on to another device may have to keep it.
    pub fn readable_lengths(&self) -> &[u32] {
        self.lengths.get(..self.readable_descriptors).unwrap_or_default()
    }

    /// As [`readable_lengths`](Self::readable_lengths), of the writable part.
    pub fn writable_lengths(&self) -> &[u32] {
        self.lengths.get(self.readable_descriptors..).unwrap_or_default()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { head, readable, writable, .. } = self;
        write!(f, "request {head}: {} bytes readable, {} writable", readable.len(), writable.len())
    }
}
