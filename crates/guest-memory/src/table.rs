//! The chunks that a map cache keeps: found by number, let go oldest first. Knows no locks and maps nothing.
//!
//! Whatever leaves the table is returned, so that the caller can unmap it after unlocking.

use std::{collections::HashMap, sync::Arc};

use crate::chunk::Chunk;

/// How many chunks an eviction takes: a sixteenth of what is kept, because finding the oldest walks the whole table.
fn batch(kept: usize) -> usize {
    (kept / 16).clamp(1, LARGEST_BATCH)
}

/// Few enough (512 KiB) that the lane that pays for the unmapping does not notice.
const LARGEST_BATCH: usize = 8;

#[derive(Default)]
pub(crate) struct Table {
    chunks: HashMap<u64, Arc<Chunk>>,
}

/// What an eviction took out.
#[derive(Default)]
pub(crate) struct Evicted {
    /// Chunks that nobody will find again; dropping them unmaps those that nobody holds.
    pub(crate) chunks: Vec<Arc<Chunk>>,
    /// How many of them were of use still.
    pub(crate) fresh: usize,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The chunk, if it is not older than this generation and has the byte at `offset`.
    ///
    /// One that has a hole there is not an answer: the guest may have put a page into it since, and unlike taking one
    /// away that is not announced.
    pub(crate) fn find(&self, number: u64, offset: u64, generation: u64) -> Option<Arc<Chunk>> {
        let chunk = self.chunks.get(&number)?;
        (chunk.generation() >= generation && chunk.covers(offset)).then(|| chunk.clone())
    }

    /// Adds `chunk`, unless another lane mapped the same in the meantime. Returns the one to use from now on, and the
    /// one that is not needed.
    pub(crate) fn insert(&mut self, chunk: Arc<Chunk>, offset: u64) -> (Arc<Chunk>, Option<Arc<Chunk>>) {
        match self.chunks.get(&chunk.number()) {
            Some(other) if other.generation() >= chunk.generation() && other.covers(offset) => {
                (other.clone(), Some(chunk))
            }
            Some(newer) if newer.generation() > chunk.generation() => (chunk, None),
            _ => {
                let replaced = self.chunks.insert(chunk.number(), chunk.clone());
                (chunk, replaced)
            }
        }
    }

    /// Takes out what is older than this generation.
    pub(crate) fn take_stale(&mut self, generation: u64) -> Vec<Arc<Chunk>> {
        self.chunks.extract_if(|_, chunk| chunk.generation() < generation).map(|(_, chunk)| chunk).collect()
    }

    /// Takes out what is stale and, beyond that, the least recently used chunks that nobody holds: a batch, and
    /// as many as it takes to have room for one more below `kept`.
    pub(crate) fn evict(&mut self, kept: usize, generation: u64) -> Evicted {
        let mut chunks = self.take_stale(generation);
        let wanted = (self.chunks.len() + 1).saturating_sub(kept).max(batch(kept));
        // A count of one cannot grow while the table is borrowed: the only owner is the table itself.
        let unpinned = self.chunks.values().filter(|chunk| Arc::strong_count(chunk) == 1);
        let mut by_age: Vec<(u64, u64)> = unpinned.map(|chunk| (chunk.last_used(), chunk.number())).collect();
        if wanted < by_age.len() {
            by_age.select_nth_unstable(wanted);
            by_age.truncate(wanted);
        }
        let fresh = by_age.len();
        chunks.extend(by_age.iter().filter_map(|(_, number)| self.chunks.remove(number)));
        Evicted { chunks, fresh }
    }

    /// Bytes that an eviction could free.
    pub(crate) fn unpinned_bytes(&self) -> u64 {
        self.chunks.values().filter(|chunk| Arc::strong_count(chunk) == 1).map(|chunk| chunk.bytes()).sum()
    }
}
