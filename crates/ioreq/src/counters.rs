//! What the pump counted. One thread adds (answers given later add from theirs), any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one pump, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests taken, of any type: each stopped a vCPU.
    pub requests: u64,
    /// Reads of a device.
    pub reads: u64,
    /// Writes to a device that a vCPU waited for.
    pub writes: u64,
    /// Writes that Xen posted through the buffered ring.
    pub posted_writes: u64,
    /// Requests to forget what guest frames are mapped to.
    pub invalidations: u64,
    /// Requests that made no sense, or whose data was not in guest memory.
    pub bad_requests: u64,
    /// Accesses that found no device.
    pub unclaimed: u64,
    /// Devices that panicked in an access.
    pub panics: u64,
    /// Wake-ups that found no request; several vCPUs at a time make some.
    pub spurious_wakes: u64,
    /// Times the kernel's queue of fired channels overflowed.
    pub overflows: u64,
    /// Answers whose signal Xen refused; it does when the guest is gone.
    pub failed_signals: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) requests: Counter,
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) posted_writes: Counter,
    pub(crate) invalidations: Counter,
    pub(crate) bad_requests: Counter,
    pub(crate) panics: Counter,
    pub(crate) spurious_wakes: Counter,
    pub(crate) overflows: Counter,
    pub(crate) failed_signals: Counter,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// All of them now; `unclaimed` is counted by the bus.
    pub(crate) fn snapshot(&self, unclaimed: u64) -> Counts {
        Counts {
            requests: self.requests.get(),
            reads: self.reads.get(),
            writes: self.writes.get(),
            posted_writes: self.posted_writes.get(),
            invalidations: self.invalidations.get(),
            bad_requests: self.bad_requests.get(),
            unclaimed,
            panics: self.panics.get(),
            spurious_wakes: self.spurious_wakes.get(),
            overflows: self.overflows.get(),
            failed_signals: self.failed_signals.get(),
        }
    }
}
