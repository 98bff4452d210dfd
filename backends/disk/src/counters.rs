//! What a disk counts, beside what every device counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts since the disk was made, over all lanes and resets.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reads: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) writes: Counter,
    pub(crate) bytes_written: Counter,
    pub(crate) flushes: Counter,
    pub(crate) discards: Counter,
    pub(crate) zeroings: Counter,
    /// Requests that the host failed.
    pub(crate) errors: Counter,
    /// Requests refused for what the driver asked.
    pub(crate) refusals: Counter,
}

impl Counters {
    pub(crate) fn pairs(&self) -> Vec<(&'static str, u64)> {
        let Self { reads, bytes_read, writes, bytes_written, flushes, discards, zeroings, errors, refusals } = self;
        vec![
            ("reads", reads.get()),
            ("bytes_read", bytes_read.get()),
            ("writes", writes.get()),
            ("bytes_written", bytes_written.get()),
            ("flushes", flushes.get()),
            ("discards", discards.get()),
            ("zeroings", zeroings.get()),
            ("errors", errors.get()),
            ("refusals", refusals.get()),
        ]
    }
}

/// One count. Lanes add, anyone reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Returns the count with `amount` in it.
    pub(crate) fn add(&self, amount: u64) -> u64 {
        self.0.fetch_add(amount, Relaxed).wrapping_add(amount)
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
