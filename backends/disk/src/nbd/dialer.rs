//! The thread of a disk that looks for a server which is gone: connections are waited for and hands are shaken here, where it
//! harms nobody to wait.
//!
//! One for all lanes, so that a dead server is not asked more often for having more of them, nor for a guest that resets
//! its device again and again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use virtio_backend::reach::Then;
use virtio_backend::{Bell, Reach, count_failure};

use super::export::Export;
use super::patient::Deadline;
use super::shared::chain;
use super::uri::Address;
use super::{NbdError, handshake};

/// Between two attempts, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long a server may take for its whole handshake.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that takes requests.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) socket: OwnedFd,
    pub(super) export: Export,
}

/// Where a lane finds what came of its wish for a connection.
#[derive(Debug)]
pub(super) struct Slot {
    outcome: Mutex<Option<Result<Connected, Arc<NbdError>>>>,
    /// Rung when there is something.
    pub(super) bell: Bell,
}

impl Slot {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { outcome: Mutex::default(), bell: Bell::new()? })
    }

    /// A connection, after which there is no more to come; or why there was none so far.
    pub(super) fn take(&self) -> Option<Result<Connected, Arc<NbdError>>> {
        locked(&self.outcome).take()
    }

    fn put(&self, outcome: Result<Connected, Arc<NbdError>>) {
        *locked(&self.outcome) = Some(outcome);
        self.bell.ring();
    }
}

/// The thread, as the lanes know it. It ends when this is dropped, after what it is doing.
#[derive(Debug)]
pub(super) struct Dialer(Arc<Desk>);

#[derive(Debug)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
    failures: AtomicU64,
}

#[derive(Debug)]
struct Orders {
    waiting: VecDeque<Weak<Slot>>,
    /// Attempts in a row of which nothing good came.
    strikes: u32,
    not_before: Instant,
    closed: bool,
}

impl Dialer {
    /// # Errors
    /// The host has no thread.
    pub(super) fn new(caller: Caller) -> io::Result<Self> {
        let orders = Orders { waiting: VecDeque::new(), strikes: 0, not_before: Instant::now(), closed: false };
        let desk = Arc::new(Desk { orders: Mutex::new(orders), changed: Condvar::new(), failures: AtomicU64::new(0) });
        let dialer = Self(Arc::clone(&desk));
        thread::Builder::new().name("nbd-dialer".to_owned()).spawn(move || desk.work(&caller))?;
        Ok(dialer)
    }

    /// Asks for a connection, until there is one or `slot` is dropped.
    pub(super) fn ask(&self, slot: &Arc<Slot>) {
        locked(&self.0.orders).waiting.push_back(Arc::downgrade(slot));
        self.0.changed.notify_all();
    }

    /// A connection has ended before it was of any use.
    pub(super) fn strike(&self) {
        locked(&self.0.orders).strike();
    }

    /// A connection is of use.
    pub(super) fn succeeded(&self) {
        locked(&self.0.orders).strikes = 0;
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        locked(&self.0.orders).closed = true;
        self.0.changed.notify_all();
    }
}

impl Orders {
    fn strike(&mut self) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.strikes.min(8)).min(LONGEST_PAUSE);
        self.strikes = self.strikes.saturating_add(1);
        self.not_before = Instant::now() + pause;
    }

    fn next(&mut self) -> Option<Arc<Slot>> {
        self.waiting.retain(|slot| slot.strong_count() > 0);
        self.waiting.front().and_then(Weak::upgrade)
    }
}

impl Desk {
    fn work(&self, caller: &Caller) {
        while self.wait_for_an_order() {
            let outcome = caller.call();
            if let Err(error) = &outcome
                && let Some(failures) = count_failure(&self.failures)
            {
                let why = chain(error);
                tracing::warn!(
                    name: "disk.nbd_absent", image = %caller.address, why, failures,
                    "The disk's NBD server is not to be reached"
                );
            }
            let mut orders = locked(&self.orders);
            match outcome {
                Ok(connected) => {
                    // Whoever asked may have given up meanwhile; the next one is as glad of it.
                    if let Some(slot) = orders.next() {
                        orders.waiting.pop_front();
                        slot.put(Ok(connected));
                    }
                }
                Err(error) => {
                    orders.strike();
                    let error = Arc::new(error);
                    let waiting = orders.waiting.iter().filter_map(Weak::upgrade);
                    waiting.for_each(|slot| slot.put(Err(Arc::clone(&error))));
                }
            }
        }
    }

    /// False if there will be none any more.
    fn wait_for_an_order(&self) -> bool {
        let mut orders = locked(&self.orders);
        loop {
            if orders.closed {
                return false;
            }
            let waits = orders.next().is_some();
            let pause = orders.not_before.saturating_duration_since(Instant::now());
            orders = match (waits, pause.is_zero()) {
                (true, true) => return true,
                (true, false) => {
                    let woken = self.changed.wait_timeout(orders, pause);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                (false, _) => self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// Whom to call, and who is expected to answer.
pub(super) struct Caller {
    pub(super) address: Address,
    /// Connects.
    pub(super) reach: Arc<dyn Reach>,
    pub(super) expected: Export,
    /// The disk makes use of several connections.
    pub(super) several: bool,
}

impl Caller {
    fn call(&self) -> Result<Connected, NbdError> {
        let socket = self.dial()?;
        let deadline = Deadline::after(PATIENCE);
        let socket = handshake::greet(socket, deadline)?;
        let (socket, export) = handshake::begin(socket, &self.address.export, deadline)?;
        export.replaces(&self.expected, self.several)?;
        Ok(Connected { socket, export })
    }

    /// Waits as long as it takes to look a name up and to connect; there is always an answer.
    fn dial(&self) -> Result<OwnedFd, NbdError> {
        let (says, said) = mpsc::sync_channel(1);
        // Who asked is here until it is answered.
        self.reach.ask(0, Then::new(move |outcome| drop(says.send(outcome))));
        let outcome = said.recv().unwrap_or_else(|_unanswered| Err(io::ErrorKind::ConnectionAborted.into()));
        outcome.map_err(|source| NbdError::Connect { place: self.address.to_string(), source })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
