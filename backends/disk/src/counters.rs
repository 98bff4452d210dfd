//! What a disk counts, beside what every device counts.

use std::sync::atomic::Ordering::Relaxed;

use crate::request::Io;

virtio_backend::counters! {
    /// Counts since the disk was made, over all lanes and resets.
    pub(crate) struct Counters;
    /// [`Counters`] at one moment.
    pub(crate) struct CountersSnapshot;

    /// Reads done.
    reads,
    /// Bytes that they moved.
    bytes_read,
    /// Writes done.
    writes,
    /// Bytes that they moved.
    bytes_written,
    /// Flushes done.
    flushes,
    /// Discards done.
    discards,
    /// Write-zeroes done.
    zeroings,
    /// Requests that ended in an error which the driver did not cause.
    errors,
    /// Operations that the host failed; the same but for flushes refused after a failed one.
    host_failures,
    /// Requests refused for what the driver asked.
    refusals,
    /// Waits for one of the disk's limits.
    throttled,
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
        requests.fetch_add(1, Relaxed);
        if let Some((counter, bytes)) = bytes {
            counter.fetch_add(bytes, Relaxed);
        }
    }
}
