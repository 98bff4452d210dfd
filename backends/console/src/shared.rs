//! What the threads of a console share.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};

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
    /// The first port's [`Size`] in one word: rows in the upper half.
    size: AtomicU32,
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
            size: AtomicU32::new(word(size)),
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
        let [cols_low, cols_high, rows_low, rows_high] = self.size.load(Relaxed).to_le_bytes();
        let cols = u16::from_le_bytes([cols_low, cols_high]);
        Size { cols, rows: u16::from_le_bytes([rows_low, rows_high]) }
    }

    /// The first port's terminal has this size now.
    pub(crate) fn resize(&self, size: Size) {
        if self.size.swap(word(size), Relaxed) == word(size) {
            return;
        }
        // With several ports a driver goes by control messages and does not mind.
        if let Some(signals) = self.signals.get() {
            signals.config_changed();
        }
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

fn word(size: Size) -> u32 {
    u32::from(size.rows) << 16 | u32::from(size.cols)
}
