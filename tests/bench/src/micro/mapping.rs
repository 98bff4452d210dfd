//! Pages of the guest's, pinned for a request: found where the lane looked last, or mapped.

use anyhow::{Context, Result};
use guest_memory::{Access, Budget, Buffers, CHUNK_SIZE, MapCache, PAGE_SIZE, PlainMemory, View};
use vm_memory::GuestAddress;

use super::{BATCH, Steps};
use crate::guest::BLOCK;

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: usize = 64 << 20;

/// Pins pages one after the other, by `stride` bytes.
pub(super) struct Pins {
    view: View,
    /// Used again and again, as a ring does it.
    buffers: Buffers,
    next: u64,
    stride: u64,
    reach: u64,
}

impl Pins {
    /// Pages of a single chunk.
    pub(super) fn that_hit() -> Result<Self> {
        Self::new(Budget::default(), PAGE_SIZE, CHUNK_SIZE)
    }

    /// Each in a chunk of its own, of many more than are kept. The memory is mapped already as a whole, so that a mapping
    /// costs what is to be done for it beside the hypercalls.
    pub(super) fn that_miss() -> Result<Self> {
        let budget = Budget { kept: 2 * View::REACH, at_most: 4 * View::REACH };
        Self::new(budget, CHUNK_SIZE, RAM_BYTES as u64)
    }

    fn new(budget: Budget, stride: u64, reach: u64) -> Result<Self> {
        let memory = PlainMemory::anonymous(&[(RAM, RAM_BYTES)]).context("Cannot make a guest's memory")?;
        Ok(Self { view: View::new(MapCache::new(memory, budget)), buffers: Buffers::new(), next: 0, stride, reach })
    }
}

impl Steps for Pins {
    fn make(&mut self) {
        for _ in 0..BATCH {
            self.view.quiesce();
            let piece = (GuestAddress(RAM + self.next), BLOCK);
            self.view.pin(&[piece], Access::Write, &mut self.buffers).expect("memory of the guest's, and room for it");
            self.buffers.clear();
            self.next = (self.next + self.stride) % self.reach;
        }
    }
}
