//! What the lanes of a disk over NBD share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use virtio_backend::count_failure;
use zerocopy::IntoBytes;

use super::NbdError;
use super::counters::Counters;
use super::dialer::{Connected, Dialer};
use super::export::Export;
use super::life::Life;
use super::uri::Address;
use super::wire::{REQUEST_MAGIC, RequestHeader, command};

/// How long what may last. `None` is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// How long a server may be silent while it owes an answer.
    pub answer: Option<Duration>,
    /// How long requests wait for a server that is gone.
    pub reconnect: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) address: Address,
    /// The export as the guest knows it.
    pub(super) export: Export,
    pub(super) patience: Patience,
    pub(super) counters: Counters,
    pub(super) dialer: Dialer,
    /// Connections that no lane has for the moment.
    spares: Mutex<Vec<Connected>>,
    life: Mutex<Weak<Life>>,
    /// Lanes without a connection.
    down: AtomicUsize,
    /// The log has that the server is gone, and not yet that it is back.
    gone_told: AtomicBool,
    /// The log has that requests fail.
    failing_told: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        address: Address,
        patience: Patience,
        connections: Vec<Connected>,
        dialer: Dialer,
        export: Export,
    ) -> Self {
        Self {
            address,
            export,
            patience,
            counters: Counters::default(),
            dialer,
            spares: Mutex::new(connections),
            life: Mutex::default(),
            down: AtomicUsize::new(0),
            gone_told: AtomicBool::new(false),
            failing_told: AtomicBool::new(false),
        }
    }

    /// The life that the other lanes are in, or a new one.
    pub(super) fn join_life(&self) -> Arc<Life> {
        let mut current = locked(&self.life);
        current.upgrade().unwrap_or_else(|| {
            let life = Arc::default();
            *current = Arc::downgrade(&life);
            life
        })
    }

    pub(super) fn take_spare(&self) -> Option<Connected> {
        locked(&self.spares).pop()
    }

    /// Keeps a connection on which nothing is under way, for the next life.
    pub(super) fn keep(&self, connection: Connected) {
        locked(&self.spares).push(connection);
    }

    /// A lane is without a connection.
    pub(super) fn note_down(&self) {
        self.down.fetch_add(1, SeqCst);
    }

    /// A lane has one again, or has ended.
    pub(super) fn note_up(&self) {
        self.down.fetch_sub(1, SeqCst);
    }

    /// A connection that was in use has ended.
    pub(super) fn note_loss(&self, why: &NbdError) {
        let losses = count_failure(&self.counters.nbd_losses);
        // The other lanes are about to find out the same. A server that comes and goes cannot fill the log either.
        if let Some(losses) = losses.filter(|_| self.down.load(SeqCst) == 0) {
            self.gone_told.store(true, SeqCst);
            let why = chain(why);
            tracing::warn!(
                name: "disk.nbd_gone", image = %self.address, why, losses,
                "The disk's NBD server is gone; requests wait until it is back"
            );
        }
    }

    /// A lost connection has a successor.
    pub(super) fn note_reconnect(&self) {
        self.counters.nbd_reconnects.fetch_add(1, SeqCst);
        self.failing_told.store(false, SeqCst);
        if self.down.load(SeqCst) == 0 && self.gone_told.swap(false, SeqCst) {
            tracing::info!(name: "disk.nbd_back", image = %self.address, "The disk's NBD server is back");
        }
    }

    pub(super) fn note_resent(&self, requests: usize) {
        self.counters.nbd_resent.fetch_add(requests as u64, SeqCst);
    }

    /// Requests fail from now on.
    pub(super) fn note_failing(&self, why: &NbdError) {
        if !self.failing_told.swap(true, SeqCst) {
            let why = chain(why);
            tracing::error!(name: "disk.nbd_failing", image = %self.address, why, "Requests of the disk fail");
        }
    }

    pub(super) fn note_doubt(&self) {
        tracing::error!(
            name: "disk.nbd_doubt", image = %self.address,
            "The NBD server went away with writes that were not flushed: the disk's flushes fail until the guest resets \
             it (see docs/storage.md)"
        );
    }
}

impl Drop for Shared {
    /// Takes leave of the server, which would report a connection that just ends.
    fn drop(&mut self) {
        let farewell = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: 0.into(),
            kind: command::DISC.into(),
            cookie: 0.into(),
            offset: 0.into(),
            length: 0.into(),
        };
        for spare in locked(&self.spares).drain(..) {
            // It may be gone, and need not hear.
            let _ = send(&spare.socket, farewell.as_bytes(), SendFlags::NOSIGNAL);
        }
    }
}

/// An error and its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
