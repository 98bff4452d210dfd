//! One descriptor chain, resolved.

use std::fmt;

use guest_memory::Buffers;

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
}

impl Request {
    /// Index of the chain's first descriptor: below the queue's size, unique among those in flight.
    pub fn head(&self) -> u16 {
        self.head
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { head, readable, writable } = self;
        write!(f, "request {head}: {} bytes readable, {} writable", readable.len(), writable.len())
    }
}
