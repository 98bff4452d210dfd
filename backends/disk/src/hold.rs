//! Requests that the host failed and that wait for the operator (`on_error = "hold"`).
//!
//! A guest sees a slow disk instead of an error, as its drivers set no time limit to a virtio disk, and its file systems
//! stay writable. What is held is still the lane's: memory and place in the ring. It is tried again when the operator says
//! so, and fails with a reset, which waits for nobody.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use virtio_backend::{Bell, Request};

use crate::request::Io;

/// What is held of a disk's requests, over all its lanes.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Of what, for messages.
    image: String,
    /// How often the operator has said to go on.
    rounds: AtomicU64,
    /// Lanes meet here when the host fails, and else when they start and end.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: u64,
    /// Since when there is anything.
    since: Option<Instant>,
    /// What wakes the lanes.
    bells: Vec<Weak<Bell>>,
}

impl Hold {
    pub(crate) fn new(image: &str) -> Arc<Self> {
        Arc::new(Self { image: image.to_owned(), rounds: AtomicU64::new(0), state: Mutex::default() })
    }

    /// Has all lanes try again what they hold.
    ///
    /// # Errors
    /// There is nothing, in words.
    pub(crate) fn resume(&self) -> Result<(), String> {
        let state = self.state();
        if state.held == 0 {
            return Err("No request of this disk is held".to_owned());
        }
        tracing::info!(name: "disk.resumed", image = self.image, held = state.held, "Trying again what was held");
        self.rounds.fetch_add(1, Ordering::SeqCst);
        state.bells.iter().filter_map(Weak::upgrade).for_each(|bell| bell.ring());
        Ok(())
    }

    /// How many requests are held, and for how many seconds there have been any.
    pub(crate) fn extent(&self) -> (u64, u64) {
        let state = self.state();
        (state.held, state.since.map_or(0, |since| since.elapsed().as_secs()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, error: &io::Error) {
        let mut state = self.state();
        state.held += 1;
        let is_first = state.since.is_none();
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        if is_first {
            tracing::error!(
                name: "disk.held", image = self.image, %error,
                "The host fails requests of the disk, which wait from now on: mend the storage, then `resume` the disk"
            );
        }
    }

    fn remove(&self, requests: u64) {
        let mut state = self.state();
        state.held = state.held.saturating_sub(requests);
        if state.held == 0 {
            state.since = None;
        }
    }
}

/// What a lane holds.
pub(crate) struct Holder {
    hold: Arc<Hold>,
    bell: Arc<Bell>,
    /// The round that the lane has taken part in.
    round: u64,
    requests: Vec<(Request, Io)>,
}

impl Holder {
    /// # Errors
    /// The host is out of descriptors.
    pub(crate) fn new(hold: &Arc<Hold>) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let mut state = hold.state();
        state.bells.retain(|bell| bell.strong_count() > 0);
        state.bells.push(Arc::downgrade(&bell));
        drop(state);
        let round = hold.rounds.load(Ordering::SeqCst);
        Ok(Self { hold: Arc::clone(hold), bell, round, requests: Vec::new() })
    }

    /// Becomes readable when the lane is to try again.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Keeps a request that failed with `error`.
    pub(crate) fn keep(&mut self, request: Request, io: Io, error: &io::Error) {
        self.requests.push((request, io));
        self.hold.add(error);
    }

    /// What is to be tried again now: all that is held, once for each word of the operator.
    pub(crate) fn take_to_retry(&mut self) -> Vec<(Request, Io)> {
        let round = self.hold.rounds.load(Ordering::SeqCst);
        if std::mem::replace(&mut self.round, round) == round { Vec::new() } else { self.take_all() }
    }

    /// All that is held.
    pub(crate) fn take_all(&mut self) -> Vec<(Request, Io)> {
        let requests = std::mem::take(&mut self.requests);
        self.hold.remove(requests.len() as u64);
        requests
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.take_all();
    }
}
