//! The write cache as the driver sees it: there or not, and switched on and off (virtio 1.2 §5.2.5, §5.2.6.2).

use std::sync::atomic::{AtomicU8, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

/// Writes count as done before they are durable: `writeback` of configuration space.
const WRITEBACK: u8 = 1;
/// The driver may switch.
const SWITCHES: u8 = 2;
/// It was switched off, so what came before may not be durable, and no flush will be asked for.
const LEFT: u8 = 4;

/// What a driver is promised of a write when it is told that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Nothing, before it flushes.
    Volatile,
    /// That it is durable.
    Stable,
    /// That it is durable, as is every write that was done before it.
    StableWithAllBefore,
}

/// The cache mode of one disk.
#[derive(Debug)]
pub(crate) struct CacheMode {
    /// As configured.
    write_through: bool,
    bits: AtomicU8,
}

impl CacheMode {
    /// The bits of a cache that promises most, and that the driver cannot switch.
    pub(crate) const STRICTEST: u8 = LEFT;

    pub(crate) fn new(write_through: bool) -> Self {
        Self { write_through, bits: AtomicU8::new(if write_through { 0 } else { WRITEBACK }) }
    }

    /// Negotiation has come to these features. A driver that does not know how to flush has no cache to flush (§5.2.5.2).
    pub(crate) fn negotiated(&self, features: u64) {
        let cached = !self.write_through && has(features, VIRTIO_BLK_F_FLUSH);
        let switches = cached && has(features, VIRTIO_BLK_F_CONFIG_WCE);
        let bits = if cached { WRITEBACK } else { 0 } | if switches { SWITCHES } else { 0 };
        self.bits.store(bits, Ordering::SeqCst);
    }

    /// For a process that follows.
    pub(crate) fn bits(&self) -> u8 {
        self.bits.load(Ordering::SeqCst)
    }

    /// Goes on with the bits of a former process. A cache that is configured away stays away.
    pub(crate) fn restore(&self, bits: u8) {
        let bits = if self.write_through { 0 } else { bits & (WRITEBACK | SWITCHES | LEFT) };
        self.bits.store(bits, Ordering::SeqCst);
    }

    /// What the driver reads.
    pub(crate) fn writeback(&self) -> u8 {
        self.bits.load(Ordering::SeqCst) & WRITEBACK
    }

    /// What the driver writes; anything but 0 and 1 means nothing.
    ///
    /// Drives that are told to switch their cache off empty it. As that may take long, it is done by the next write.
    pub(crate) fn set_writeback(&self, value: u8) {
        let switched = |bits: u8| match value {
            _ if bits & SWITCHES == 0 => None,
            0 if bits & WRITEBACK != 0 => Some(bits & !WRITEBACK | LEFT),
            1 => Some(bits | WRITEBACK),
            _ => None,
        };
        // An error is a write without effect.
        let _ = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, switched);
    }

    /// What a driver that negotiated `features` is promised of a write that is submitted now.
    pub(crate) fn promise(&self, features: u64) -> Promise {
        let bits = self.bits.load(Ordering::SeqCst);
        match bits & WRITEBACK != 0 && has(features, VIRTIO_BLK_F_FLUSH) {
            true => Promise::Volatile,
            false if bits & LEFT != 0 => Promise::StableWithAllBefore,
            false => Promise::Stable,
        }
    }
}

fn has(features: u64, feature: u32) -> bool {
    features & 1 << feature != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    const BOTH: u64 = FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE;

    #[test]
    fn the_mode_follows_from_configuration_and_negotiation() {
        let table = [
            (false, BOTH, Promise::Volatile),
            (false, FLUSH, Promise::Volatile),
            (false, BOTH & !FLUSH, Promise::Stable),
            (false, 0, Promise::Stable),
            (true, 0, Promise::Stable),
            (true, BOTH, Promise::Stable),
        ];
        for (write_through, features, promise) in table {
            let mode = CacheMode::new(write_through);
            mode.negotiated(features);
            assert_eq!(mode.promise(features), promise, "{write_through} {features:#x}");
            assert_eq!(mode.writeback(), u8::from(promise == Promise::Volatile), "{write_through} {features:#x}");
        }
    }

    #[test]
    fn e10_a_cache_that_is_switched_off_leaves_nothing_behind_and_negotiation_starts_anew() {
        let mode = CacheMode::new(false);
        mode.negotiated(BOTH);

        for _ in 0..3 {
            mode.set_writeback(0);
            assert_eq!((mode.writeback(), mode.promise(BOTH)), (0, Promise::StableWithAllBefore));
            mode.set_writeback(1);
            assert_eq!((mode.writeback(), mode.promise(BOTH)), (1, Promise::Volatile));
        }

        // Once more changes nothing.
        mode.set_writeback(0);
        mode.set_writeback(0);
        assert_eq!((mode.writeback(), mode.promise(BOTH)), (0, Promise::StableWithAllBefore));
        mode.negotiated(BOTH);
        assert_eq!(mode.promise(BOTH), Promise::Volatile);
    }

    #[test]
    fn e10_other_values_and_other_drivers_switch_nothing() {
        let mode = CacheMode::new(false);
        mode.negotiated(BOTH);
        (2..=u8::MAX).for_each(|value| mode.set_writeback(value));
        assert_eq!(mode.promise(BOTH), Promise::Volatile);

        for features in [FLUSH, 0, BOTH & !FLUSH] {
            mode.negotiated(features);
            let before = mode.promise(features);
            mode.set_writeback(0);
            mode.set_writeback(1);
            assert_eq!(mode.promise(features), before, "{features:#x}");
        }
    }
}
