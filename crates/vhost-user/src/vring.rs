//! A ring as the front-end has described it; a lane judges whether that can be worked.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_backend::{RingPosition, RingSetup};

/// What messages have said of a ring.
pub(crate) struct Vring {
    max_size: u16,
    /// Entries; 0, which no ring can have, stands for what does not fit.
    pub(crate) size: u16,
    /// The next entry of the available ring to look at, when the ring starts.
    pub(crate) base: u16,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) enabled: bool,
    pub(crate) kick: Option<Arc<OwnedFd>>,
}

/// Guest addresses of a ring's three areas.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) desc_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
}

impl Vring {
    pub(crate) fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, base: 0, addresses: None, enabled: false, kick: None }
    }

    /// Where it lies and what wakes a lane for it, if that is known and it is to be worked.
    pub(crate) fn wanted(&self) -> Option<(Addresses, Arc<OwnedFd>)> {
        Some((self.addresses.filter(|_| self.enabled)?, self.kick.clone()?))
    }

    /// How a lane is to work it, starting at [`base`](Self::base), with the used ring at `next_used`.
    pub(crate) fn setup(&self, at: Addresses, next_used: u16, event_idx: bool, max_chain_bytes: u64) -> RingSetup {
        RingSetup {
            size: self.size,
            max_size: self.max_size,
            desc_table: at.desc_table,
            avail_ring: at.avail_ring,
            used_ring: at.used_ring,
            event_idx,
            position: RingPosition { next_avail: self.base, next_used },
            max_chain_bytes,
        }
    }
}
