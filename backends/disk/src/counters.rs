//! What a disk counts, beside what every device counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::request::Io;

/// Counts since the disk was made, over all lanes and resets.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    reads: Counter,
    bytes_read: Counter,
    writes: Counter,
    bytes_written: Counter,
    flushes: Counter,
    discards: Counter,
    zeroings: Counter,
    /// Requests that ended in an error which the driver did not cause.
    pub(crate) errors: Counter,
    /// Operations that the host failed; the same but for flushes refused after a failed one.
    pub(crate) host_failures: Counter,
    /// Requests refused for what the driver asked.
    pub(crate) refusals: Counter,
}

impl Counters {
    /// Counts what was done.
    pub(crate) fn done(&self, io: Io) {
        let (requests, bytes) = match io {
            Io::Read(span) => (&self.reads, Some((&self.bytes_read, span.len))),
            Io::Write(span) => (&self.writes, Some((&self.bytes_written, span.len))),
            Io::Flush => (&self.flushes, None),
            Io::Discard(_) => (&self.discards, None),
            Io::WriteZeroes { .. } => (&self.zeroings, None),
        };
        requests.add(1);
        if let Some((counter, bytes)) = bytes {
            counter.add(bytes);
        }
    }

    pub(crate) fn pairs(&self) -> Vec<(&'static str, u64)> {
        let Self {
            reads,
            bytes_read,
            writes,
            bytes_written,
            flushes,
            discards,
            zeroings,
            errors,
            host_failures,
            refusals,
        } = self;
        vec![
            ("reads", reads.get()),
            ("bytes_read", bytes_read.get()),
            ("writes", writes.get()),
            ("bytes_written", bytes_written.get()),
            ("flushes", flushes.get()),
            ("discards", discards.get()),
            ("zeroings", zeroings.get()),
            ("errors", errors.get()),
            ("host_failures", host_failures.get()),
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
