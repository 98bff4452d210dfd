//! What the threads of a console share.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{io, mem};

use serde::{Deserialize, Serialize};
use virtio_backend::{Bell, Fault, Signals};

use crate::counters::Counters;
use crate::kept::Kept;
use crate::port::{Offered, Port};

/// Columns and rows of a terminal; zero where they are not known.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Size {
    pub(crate) cols: u16,
    pub(crate) rows: u16,
}

/// What the lane, the host thread and whoever accesses registers share.
pub(crate) struct Shared {
    pub(crate) ports: Vec<Port>,
    pub(crate) kept: Kept,
    pub(crate) counters: Counters,
    /// Wakes the lane, when there is one.
    pub(crate) lane: Bell,
    /// Wakes the host thread.
    pub(crate) host: Bell,
    /// That of the first port. Held by who changes it until the generation tells of that: a driver reads columns and rows
    /// one by one, and takes them for belonging together if the generation has not changed meanwhile (§2.5.3).
    size: Mutex<Size>,
    signals: OnceLock<Arc<dyn Signals>>,
    stops: AtomicBool,
}

impl Shared {
    pub(crate) fn new(ports: Vec<Port>, size: Size) -> io::Result<Self> {
        Ok(Self {
            ports,
            kept: Kept::default(),
            counters: Counters::default(),
            lane: Bell::new()?,
            host: Bell::new()?,
            size: Mutex::new(size),
            signals: OnceLock::new(),
            stops: AtomicBool::new(false),
        })
    }

    pub(crate) fn attach(&self, signals: Arc<dyn Signals>) {
        // It is handed over once.
        let _ = self.signals.set(signals);
    }

    /// Deals with what an offer of output has told.
    pub(crate) fn offered(&self, offered: Offered) {
        if offered.dropped > 0 {
            self.counters.bytes_dropped.fetch_add(offered.dropped as u64, Relaxed);
        }
        if offered.news {
            self.host.ring();
        }
    }

    pub(crate) fn size(&self) -> Size {
        *self.shown_size()
    }

    fn shown_size(&self) -> MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first port's terminal has this size now.
    pub(crate) fn resize(&self, size: Size) {
        let mut shown = self.shown_size();
        if mem::replace(&mut *shown, size) == size {
            return;
        }
        // With several ports a driver goes by control messages and does not mind.
        if let Some(signals) = self.signals.get() {
            signals.config_changed();
        }
        drop(shown);
        self.lane.ring();
    }

    /// The host thread cannot go on.
    pub(crate) fn fail(&self, fault: &Fault) {
        if let Some(signals) = self.signals.get() {
            signals.needs_reset(fault);
        }
    }

    /// Asks the host thread to end.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Release);
        self.host.ring();
    }

    pub(crate) fn stops(&self) -> bool {
        self.stops.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    /// A transport that looks, when it is told of a change, whether anybody could see it yet.
    struct Looking(Weak<Shared>, Arc<AtomicBool>);

    impl Signals for Looking {
        fn used(&self, _queues: &[usize]) {}

        fn config_changed(&self) {
            let is_unseen = self.0.upgrade().unwrap().size.try_lock().is_err();
            self.1.store(is_unseen, Relaxed);
        }

        fn needs_reset(&self, _fault: &Fault) {}
    }

    #[test]
    fn spec_4_2_2_1_nobody_sees_a_new_size_before_the_generation_tells_of_it() {
        let (shared, was_unseen) = (Arc::new(Shared::new(Vec::new(), Size::default()).unwrap()), Arc::default());
        shared.attach(Arc::new(Looking(Arc::downgrade(&shared), Arc::clone(&was_unseen))));

        shared.resize(Size { cols: 132, rows: 50 });

        assert!(was_unseen.load(Relaxed));
        assert_eq!(shared.size(), Size { cols: 132, rows: 50 });
    }
}
