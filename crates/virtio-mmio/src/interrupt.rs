//! The device's one interrupt (virtio 1.2 §4.2.3.4).
//!
//! The interrupt is asserted while any bit of InterruptStatus is set, and a line that knows edges only
//! is told of the rises of that level: when the first bit is set, and when the driver acknowledges
//! some bits of several. An event whose bit is set already needs no injection of its own: the driver
//! has yet to acknowledge that bit, acknowledges before it looks at its rings or at configuration
//! space, and so finds this event with the one before. A guest that lags behind costs one injection
//! per look, not one per pass of a lane.
//!
//! Bits are set and cleared by atomic operations from any thread; of two that race, exactly one sees
//! the level rise.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Counters;
use crate::counters::count;
use crate::sync::AtomicU32;

/// The way to the guest's interrupt controller.
pub trait InterruptLine: Send + Sync {
    /// Injects one interrupt; called from any thread. Does not block.
    ///
    /// # Errors
    /// The interrupt was not delivered. It is not tried again before the next event.
    fn raise(&self) -> io::Result<()>;
}

/// A bit of InterruptStatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cause {
    /// The device has used a buffer in at least one of the queues.
    UsedBuffer = 1,
    /// Configuration space or DEVICE_NEEDS_RESET has changed.
    Config = 2,
}

/// InterruptStatus, and the line that follows it.
pub(crate) struct Interrupt {
    status: AtomicU32,
    line: Arc<dyn InterruptLine>,
    counters: Arc<Counters>,
}

impl Interrupt {
    pub(crate) fn new(line: Arc<dyn InterruptLine>, counters: Arc<Counters>) -> Self {
        Self { status: AtomicU32::new(0), line, counters }
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets the bit and, if the level rose, injects.
    pub(crate) fn assert(&self, cause: Cause) {
        if self.set(cause) {
            self.inject();
        }
    }

    /// Sets the bit; true if the level rose, and an injection is due.
    #[must_use]
    pub(crate) fn set(&self, cause: Cause) -> bool {
        // Releases what was done before, the used ring above all, to who acknowledges.
        self.status.fetch_or(cause as u32, Ordering::AcqRel) == 0
    }

    /// Clears the bits that the driver has seen. Bits that are not set, or that do not exist, do no
    /// harm.
    pub(crate) fn acknowledge(&self, bits: u32) {
        let before = self.status.fetch_and(!bits, Ordering::AcqRel);
        let is_partial = before & bits != 0 && before & !bits != 0;
        // The level is still there and a real line would interrupt again at once; ours must be told.
        if is_partial {
            self.inject();
        }
    }

    /// A former process may have set any bit, and may have injected for it or not.
    pub(crate) fn set_all(&self) {
        self.status.store(Cause::UsedBuffer as u32 | Cause::Config as u32, Ordering::Release);
    }

    /// The device is reset.
    pub(crate) fn clear(&self) {
        self.status.store(0, Ordering::Release);
    }

    pub(crate) fn inject(&self) {
        tracing::trace!(name: "mmio.interrupt", "Injecting an interrupt");
        match self.line.raise() {
            Ok(()) => count(&self.counters.interrupts),
            Err(error) => {
                count(&self.counters.interrupts_lost);
                tracing::warn!(name: "mmio.interrupt_lost", %error, "An interrupt could not be injected");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[derive(Default)]
    struct Line(AtomicU64);

    impl InterruptLine for Line {
        fn raise(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn interrupt() -> (Arc<Line>, Interrupt) {
        let line = Arc::<Line>::default();
        (line.clone(), Interrupt::new(line, Arc::default()))
    }

    fn raised(line: &Line) -> u64 {
        line.0.load(Ordering::Relaxed)
    }

    #[test]
    fn events_until_the_acknowledgement_share_one_injection() {
        let (line, interrupt) = interrupt();
        (0..5).for_each(|_| interrupt.assert(Cause::UsedBuffer));
        assert_eq!(raised(&line), 1);
        interrupt.acknowledge(1);
        interrupt.assert(Cause::UsedBuffer);
        assert_eq!(raised(&line), 2);
    }

    #[test]
    fn c15_what_the_driver_did_not_acknowledge_interrupts_again() {
        let (line, interrupt) = interrupt();
        interrupt.assert(Cause::UsedBuffer);
        interrupt.assert(Cause::Config);
        interrupt.acknowledge(Cause::UsedBuffer as u32);
        assert_eq!((interrupt.status(), raised(&line)), (2, 2));
        interrupt.acknowledge(Cause::Config as u32);
        assert_eq!((interrupt.status(), raised(&line)), (0, 2));
    }

    #[test]
    fn c15_acknowledging_bits_that_are_not_set_changes_nothing() {
        let (line, interrupt) = interrupt();
        interrupt.acknowledge(u32::MAX);
        interrupt.assert(Cause::UsedBuffer);
        interrupt.acknowledge(!1);
        assert_eq!((interrupt.status(), raised(&line)), (1, 1));
    }

    #[test]
    fn of_racing_events_one_injects() {
        for _ in 0..200 {
            let (line, interrupt) = interrupt();
            std::thread::scope(|scope| {
                scope.spawn(|| interrupt.assert(Cause::Config));
                interrupt.assert(Cause::UsedBuffer);
            });
            assert_eq!((interrupt.status(), raised(&line)), (3, 1));
        }
    }
}
