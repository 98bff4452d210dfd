//! Asking for a connection in the place of one that is gone, one at a time. It outlives resets: whoever works with the device
//! when the answer comes takes it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_backend::reach::Then;
use virtio_backend::{Bell, Reach};

/// The device's way to ask.
pub(crate) struct Asking {
    reach: Arc<dyn Reach>,
    desk: Arc<Desk>,
}

struct Desk {
    state: Mutex<State>,
    /// Rung when there is an answer.
    bell: Arc<Bell>,
}

/// How far the question has come.
enum State {
    /// There is none.
    Unasked,
    /// The answer is due.
    Asked,
    /// Here it is.
    Answered(io::Result<OwnedFd>),
}

impl Asking {
    pub(crate) fn new(reach: Arc<dyn Reach>, bell: Arc<Bell>) -> Self {
        Self { reach, desk: Arc::new(Desk { state: Mutex::new(State::Unasked), bell }) }
    }

    /// Asks, unless that has been done. There is an answer some time after, of which the bell tells.
    pub(crate) fn ask(&self) {
        {
            let mut state = self.desk.state();
            match *state {
                State::Unasked => *state = State::Asked,
                State::Asked => return,
                State::Answered(_) => return self.desk.bell.ring(),
            }
        }
        let desk = Arc::clone(&self.desk);
        let then = Then::new(move |outcome| {
            *desk.state() = State::Answered(outcome);
            desk.bell.ring();
        });
        self.reach.ask(0, then);
    }

    /// The answer, once.
    pub(crate) fn take_answer(&self) -> Option<io::Result<OwnedFd>> {
        let mut state = self.desk.state();
        match std::mem::replace(&mut *state, State::Unasked) {
            State::Answered(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
