//! What becomes of writes that a server has acknowledged and nobody has flushed, when the server goes away.
//!
//! A server that crashed, or whose host did, has lost them; one that was only restarted has not, and nothing that it says
//! tells the two apart. To answer the guest's next flush with success would be a promise that may be broken already, and
//! to whom it was made would find out when its file system is. So that flush fails, and with it (by the disk's rule) all
//! until the guest resets the device. Where every write is durable by itself, nothing is lost and nothing fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// From one reset to the next, over all lanes of a disk.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// Writes acknowledged that a flush has to make durable.
    acknowledged: AtomicU64,
    /// Of these, as many as a flush has.
    flushed: AtomicU64,
    /// Some were when a connection ended.
    in_doubt: AtomicBool,
}

impl Life {
    /// A write is acknowledged that is not durable by itself.
    pub(super) fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, SeqCst);
    }

    /// How many a flush that is sent now makes durable.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    /// A flush of so many has succeeded. False if it came too late for some.
    pub(super) fn flushed(&self, writes: u64) -> bool {
        self.flushed.fetch_max(writes, SeqCst);
        !self.in_doubt.load(SeqCst)
    }

    /// A connection has ended. True if that puts writes in doubt, for the first time.
    pub(super) fn lose_connection(&self) -> bool {
        self.acknowledged() > self.flushed.load(SeqCst) && !self.in_doubt.swap(true, SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_acknowledged_and_not_flushed_is_in_doubt() {
        let life = Life::default();
        assert!(!life.lose_connection());
        assert!(life.flushed(0));

        life.acknowledge();
        let sent = life.acknowledged();
        life.acknowledge();
        assert!(life.flushed(sent));
        assert!(life.lose_connection(), "the second write came after the flush was sent");
        assert!(!life.lose_connection(), "known already");
        assert!(!life.flushed(2));
    }

    #[test]
    fn a_flush_that_was_under_way_does_not_clear_the_doubt() {
        let life = Life::default();
        life.acknowledge();
        let sent = life.acknowledged();
        life.lose_connection();
        assert!(!life.flushed(sent));
    }
}
