//! The driver's buffers, where a packet is to land: one, or as many as it takes (virtio 1.2 §5.1.6.3.2).

use std::collections::VecDeque;

use guest_memory::Part;
use smallvec::SmallVec;
use virtio_backend::{Fault, Request, Ring};

/// The most pieces of memory that one read takes, with some to spare (UIO_MAXIOV is 1,024).
const MOST_PIECES: usize = 1000;

/// Buffers taken from the ring for packets to come, in the ring's order. They stay here from packet to packet of a pass.
pub(crate) struct Landing {
    chains: VecDeque<Request>,
    /// A packet may take several (MRG_RXBUF).
    mergeable: bool,
    bytes: usize,
    pieces: usize,
    /// How many, of the last, were taken in this pass. Only those can be put back: of the others the lane has told that
    /// they are taken.
    fresh: usize,
}

impl Landing {
    pub(crate) fn new(mergeable: bool) -> Self {
        Self { chains: VecDeque::new(), mergeable, bytes: 0, pieces: 0, fresh: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Takes buffers from the ring until a packet of `len` bytes, header included, has room, or there are no more.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    pub(crate) fn gather(&mut self, ring: &mut Ring, len: usize) -> Result<(), Fault> {
        // As many as the ring holds: a driver that adds some meanwhile cannot keep us.
        for _ in 0..ring.size() {
            if !self.chains.is_empty() && (!self.mergeable || self.bytes >= len) {
                break;
            }
            let Some(request) = ring.pop()? else { break };
            self.fresh += 1;
            self.bytes += request.writable.len();
            self.pieces += request.writable.iovecs().len();
            self.chains.push_back(request);
        }
        Ok(())
    }

    /// How many buffers a packet of `len` bytes takes; `None` if it does not fit.
    pub(crate) fn chains_for(&self, len: usize) -> Option<u16> {
        let most = if self.mergeable { self.chains.len() } else { 1 };
        let mut room = 0;
        let mut lens = self.chains.iter().take(most).map(|chain| chain.writable.len());
        let position = lens.position(|chain| {
            room += chain;
            room >= len
        });
        position.and_then(|position| u16::try_from(position + 1).ok())
    }

    /// The memory behind the first `at` bytes, if a read can go there that may bring `len` bytes in all.
    pub(crate) fn parts(&self, at: usize, len: usize) -> Option<SmallVec<[Part<'_>; 64]>> {
        let count = usize::from(self.chains_for(len)?);
        if self.pieces > MOST_PIECES {
            return None;
        }
        let mut skip = at;
        let parts = self.chains.iter().take(count).map(|chain| {
            let skipped = skip.min(chain.writable.len());
            skip -= skipped;
            Part { buffers: &chain.writable, at: skipped, len: chain.writable.len() - skipped }
        });
        Some(parts.collect())
    }

    /// Writes the packet's first bytes.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for chain in &self.chains {
            let written = chain.writable.write(0, rest);
            rest = rest.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Gives the first `count` buffers to the driver, with a packet of `len` bytes in them: all filled but the last.
    ///
    /// # Errors
    /// As [`Ring::push`].
    pub(crate) fn give(&mut self, ring: &mut Ring, count: u16, len: usize) -> Result<(), Fault> {
        let mut left = len;
        for _ in 0..count {
            let Some(chain) = self.chains.pop_front() else { break };
            let here = left.min(chain.writable.len());
            left -= here;
            self.forget(&chain);
            ring.push(chain, here)?;
        }
        self.fresh = self.fresh.min(self.chains.len());
        Ok(())
    }

    /// The pass ends, and all buffers are to stay.
    pub(crate) fn keep(&mut self) {
        self.fresh = 0;
    }

    /// The pass ends: puts the buffers that it took back into the ring, the last taken first.
    pub(crate) fn put_back(&mut self, ring: &mut Ring) {
        for _ in 0..std::mem::take(&mut self.fresh) {
            let Some(chain) = self.chains.pop_back() else { break };
            self.forget(&chain);
            ring.unpop(chain);
        }
    }

    /// Gives all buffers back to the driver, with nothing in them.
    ///
    /// # Errors
    /// As [`Ring::push`].
    pub(crate) fn give_back(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        (self.bytes, self.pieces, self.fresh) = (0, 0, 0);
        self.chains.drain(..).try_for_each(|chain| ring.push(chain, 0))
    }

    /// Counts a buffer no longer.
    fn forget(&mut self, chain: &Request) {
        self.bytes -= chain.writable.len();
        self.pieces -= chain.writable.iovecs().len();
    }
}
