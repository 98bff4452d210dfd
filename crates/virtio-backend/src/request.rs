//! One descriptor chain, resolved.

use std::fmt;
use std::ops::{Deref, DerefMut};

use guest_memory::Buffers;
use vm_memory::GuestAddress;

/// A request the driver made: checked, bounded, and with its memory pinned as long as it lives.
///
/// It may outlive the pass that took it and be finished on completion of asynchronous I/O; it ends
/// in [`crate::Ring::push`]. What it describes is whatever the driver keeps writing there, so a
/// header is copied out once and judged as copied.
///
/// A pointer in size, as it goes from hand to hand; the ring uses what is behind it again.
#[must_use = "a request that is not pushed back is lost to the driver"]
pub struct Request(Box<Chain>);

/// What a [`Request`] is made of.
#[derive(Default)]
pub struct Chain {
    /// Index of the chain's first descriptor, which names the request to the driver.
    pub(crate) head: u16,
    /// A former process had taken it already.
    pub(crate) is_replay: bool,
    /// The device-readable part.
    pub readable: Buffers,
    /// The device-writable part.
    pub writable: Buffers,
    /// Where the chain's descriptors say that it lies, in its order: those of the readable part, then the others.
    pub(crate) pieces: Vec<(GuestAddress, usize)>,
    /// How many of them are of the readable part.
    pub(crate) readable_descriptors: usize,
}

/// Descriptors of a chain for which nothing is allocated in the long run.
const SMALL: usize = 64;

impl Request {
    /// One of nothing yet.
    pub(crate) fn new() -> Self {
        Self(Box::default())
    }

    /// Whether it takes little memory: a driver must not fill a ring's spare requests with what its longest chains took.
    pub(crate) fn is_small(&self) -> bool {
        self.pieces.capacity() <= SMALL
    }

    /// Makes it one of nothing again; keeps its allocations.
    #[inline]
    pub(crate) fn clear(&mut self) {
        let Chain { head: _, is_replay: _, readable, writable, pieces, readable_descriptors } = &mut *self.0;
        readable.clear();
        writable.clear();
        pieces.clear();
        *readable_descriptors = 0;
    }

    /// Index of the chain's first descriptor: below the queue's size, unique among those in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Whether a former process had taken it already.
    pub fn is_replay(&self) -> bool {
        self.is_replay
    }

    /// How the driver cut the readable part up: the length of each descriptor. A device does not look at it (§2.7.4.2);
    /// who hands the request on to another device may have to keep it.
    pub fn readable_lengths(&self) -> impl ExactSizeIterator<Item = usize> + Clone {
        self.pieces.get(..self.readable_descriptors).unwrap_or_default().iter().map(|&(_, len)| len)
    }

    /// As [`readable_lengths`](Self::readable_lengths), of the writable part.
    pub fn writable_lengths(&self) -> impl ExactSizeIterator<Item = usize> + Clone {
        self.pieces.get(self.readable_descriptors..).unwrap_or_default().iter().map(|&(_, len)| len)
    }
}

impl Deref for Request {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        &self.0
    }
}

impl DerefMut for Request {
    fn deref_mut(&mut self) -> &mut Chain {
        &mut self.0
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Chain { head, readable, writable, .. } = &*self.0;
        write!(f, "request {head}: {} bytes readable, {} writable", readable.len(), writable.len())
    }
}
