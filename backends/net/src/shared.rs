//! What the lanes of a card share: what lasts as long as the card, and what ends at reset.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use virtio_backend::{Record, Signals, count_failure};

use crate::counters::Counters;
use crate::engine::Control;
use crate::features::{self, guest};
use crate::filter::Filter;
use crate::kept::{Kept, NotedLife};
use crate::published::Published;

/// What lasts as long as the card.
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) control: Box<dyn Control>,
    pub(crate) kept: Kept,
    signals: OnceLock<Arc<dyn Signals>>,
    /// The operator has put the cable in.
    plugged: AtomicBool,
    /// The host's end is there.
    carrier: AtomicBool,
}

impl Shared {
    pub(crate) fn new(control: Box<dyn Control>) -> Self {
        let (plugged, carrier) = (AtomicBool::new(true), AtomicBool::new(true));
        let (counters, kept, signals) = (Counters::default(), Kept::default(), OnceLock::new());
        Self { counters, control, kept, signals, plugged, carrier }
    }

    /// Keeps there what the driver and the operator set, and goes on with what a former process has kept.
    pub(crate) fn keep(&self, record: &Record) {
        self.plugged.store(self.kept.keep(record), Ordering::Relaxed);
    }

    pub(crate) fn attach(&self, signals: Arc<dyn Signals>) {
        // The first stays: a device is attached once.
        let _ = self.signals.set(signals);
    }

    pub(crate) fn config_changed(&self) {
        if let Some(signals) = self.signals.get() {
            signals.config_changed();
        }
    }

    /// Packets go through.
    pub(crate) fn link_is_up(&self) -> bool {
        self.plugged.load(Ordering::Relaxed) && self.carrier.load(Ordering::Relaxed)
    }

    /// The operator puts the cable in or pulls it out. Returns whether that is a change.
    pub(crate) fn plug(&self, up: bool) -> bool {
        self.kept.note_plugged(up);
        self.plugged.swap(up, Ordering::Relaxed) != up
    }

    /// The host's end is gone for good.
    pub(crate) fn lose_carrier(&self, error: &io::Error) {
        if self.carrier.swap(false, Ordering::Relaxed) {
            tracing::error!(
                name: "net.gone",
                %error,
                "The network card's end on the host is gone; its link is down until the guest is restarted"
            );
            self.config_changed();
        }
    }

    /// The host's end does not follow the driver.
    pub(crate) fn note_setup_failure(&self, error: &io::Error) {
        let worth_a_line = count_failure(&self.counters.host_setup_failures);
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.lose_carrier(error);
        } else if let Some(failures) = worth_a_line {
            tracing::warn!(name: "net.not_set", %error, failures, "The host's end of a network card cannot be set up");
        }
    }
}

/// What ends at reset.
pub(crate) struct Life {
    pub(crate) features: u64,
    pub(crate) filter: Published<Filter>,
    /// What the driver takes of packets, as in [`guest`].
    offloads: AtomicU64,
    /// Pairs of queues in use, from the first on.
    active_pairs: AtomicU16,
    /// Pairs whose lanes run, a bit each. Locked by a lane that begins or ends, while it tells the host.
    running_pairs: Mutex<u64>,
    /// The driver is to announce itself, and has not said that it did.
    announce: AtomicBool,
}

impl Life {
    /// A life that begins, of a card with the address `mac`. A host that does not follow is no reason not to begin:
    /// packets that the driver cannot take are dropped one by one.
    ///
    /// A driver with a control queue begins with one pair (§5.1.5). One without cannot ask for more: it uses all it has.
    /// One that a former process has served goes on with what it had set of `pairs` pairs.
    pub(crate) fn begin(features: u64, mac: [u8; 6], pairs: u16, shared: &Shared) -> Self {
        let has_control = features & features::CTRL_VQ != 0;
        let former = shared.kept.life().filter(|life| life.is_of(features, pairs));
        let set = former.unwrap_or_else(|| NotedLife {
            filter: Filter::after_reset(mac, features & features::CTRL_VLAN != 0),
            offloads: features & guest::ALL,
            active_pairs: if has_control { 1 } else { u16::MAX },
            announce: false,
        });
        let life = Self {
            features,
            filter: Published::new(set.filter),
            offloads: AtomicU64::new(0),
            active_pairs: AtomicU16::new(set.active_pairs),
            running_pairs: Mutex::new(0),
            announce: AtomicBool::new(set.announce),
        };
        let active = if has_control { set.active_pairs } else { 1 };
        for told in [shared.control.set_active(active), life.set_offloads(set.offloads, shared)] {
            if let Err(error) = told {
                shared.note_setup_failure(&error);
            }
        }
        life
    }

    /// Notes what the driver has set, for the process that follows if this one dies.
    pub(crate) fn note(&self, shared: &Shared) {
        shared.kept.note_life(|| {
            Some(NotedLife {
                filter: Filter::clone(&self.filter.get()),
                offloads: self.offloads(),
                active_pairs: self.active_pairs.load(Ordering::Relaxed),
                announce: self.is_to_announce(),
            })
        });
    }

    /// What the driver takes of packets.
    pub(crate) fn offloads(&self) -> u64 {
        self.offloads.load(Ordering::Relaxed)
    }

    /// The driver takes these and no others from now on.
    ///
    /// # Errors
    /// The host does not follow; all is as before.
    pub(crate) fn set_offloads(&self, offloads: u64, shared: &Shared) -> io::Result<()> {
        // In between packets of either sort come.
        let before = self.offloads.fetch_or(offloads, Ordering::Relaxed);
        let told = shared.control.set_offloads(offloads);
        self.offloads.store(if told.is_ok() { offloads } else { before }, Ordering::Relaxed);
        told
    }

    /// Whether a pair of queues is in use.
    pub(crate) fn is_active(&self, pair: u16) -> bool {
        pair < self.active_pairs.load(Ordering::Relaxed)
    }

    /// The first `pairs` pairs of queues are in use from now on.
    ///
    /// # Errors
    /// The host does not follow; all is as before, as far as it allows.
    pub(crate) fn set_active_pairs(&self, pairs: u16, shared: &Shared) -> io::Result<()> {
        // Lanes are ready for packets before the first can come, and until after the last.
        let before = self.active_pairs.fetch_max(pairs, Ordering::Relaxed);
        let told = shared.control.set_active(pairs);
        if told.is_err() {
            let _ = shared.control.set_active(before);
        }
        self.active_pairs.store(if told.is_ok() { pairs } else { before }, Ordering::Relaxed);
        told
    }

    /// The lane of a pair begins or ends. Where no driver says how many pairs it uses, the host is told of those that run:
    /// it spreads packets over all it knows, and would lose those for a pair that does not.
    pub(crate) fn set_running(&self, pair: u16, runs: bool, shared: &Shared) {
        if self.features & features::CTRL_VQ != 0 {
            return;
        }
        let mut running = self.running_pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1_u64.checked_shl(pair.into()).unwrap_or(0);
        *running = if runs { *running | bit } else { *running & !bit };
        let from_the_first = u16::try_from(running.trailing_ones()).unwrap_or(u16::MAX);
        if let Err(error) = shared.control.set_active(from_the_first.max(1)) {
            shared.note_setup_failure(&error);
        }
    }

    /// Whether the driver is to announce itself.
    pub(crate) fn is_to_announce(&self) -> bool {
        self.announce.load(Ordering::Relaxed)
    }

    /// Asks the driver to announce itself, if it knows how to, and how to tell us; or hears that it did.
    pub(crate) fn set_announce(&self, wanted: bool) {
        let needed = features::GUEST_ANNOUNCE | features::CTRL_VQ;
        self.announce.store(wanted && self.features & needed == needed, Ordering::Relaxed);
    }
}
