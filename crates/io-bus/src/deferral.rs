//! A write whose effect takes longer than the access itself.
//!
//! A device that resets, say, may answer only once nothing is in flight any more. It hands out a
//! [`Deferral`] and keeps the [`Completer`]; whoever forwarded the access attaches the answer to the
//! deferral and turns to the next access at once.

use std::mem;
use std::sync::{Arc, PoisonError};

use crate::sync::{Mutex, MutexGuard};

/// Makes the two ends of one deferred write.
pub fn defer() -> (Completer, Deferral) {
    let state = Arc::new(Mutex::new(State::Pending));
    (Completer(Arc::clone(&state)), Deferral(state))
}

/// The device's end: dropping it, on whatever path, completes the write.
#[derive(Debug)]
pub struct Completer(Arc<Mutex<State>>);

/// The forwarder's end.
#[derive(Debug)]
#[must_use = "a deferral that nobody waits for is never answered"]
pub struct Deferral(Arc<Mutex<State>>);

enum State {
    Pending,
    Awaited(Box<dyn FnOnce() + Send>),
    Complete,
}

impl Deferral {
    /// Runs `answer` when the write is complete: on the completing thread, or right here if it is
    /// complete already.
    pub fn then(self, answer: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.0);
        if matches!(*state, State::Complete) {
            drop(state);
            answer();
        } else {
            *state = State::Awaited(Box::new(answer));
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        let before = mem::replace(&mut *lock(&self.0), State::Complete);
        if let State::Awaited(answer) = before {
            answer();
        }
    }
}

/// The state is whole between any two statements, so a panic elsewhere does not spoil it.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pending => "Pending",
            Self::Awaited(_) => "Awaited",
            Self::Complete => "Complete",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn count(answers: &Arc<AtomicU32>) -> impl FnOnce() + Send + 'static {
        let answers = Arc::clone(answers);
        move || {
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_answer_waits_for_the_completer() {
        let answers = Arc::default();
        let (completer, deferral) = defer();
        deferral.then(count(&answers));
        assert_eq!(answers.load(Ordering::Relaxed), 0);
        drop(completer);
        assert_eq!(answers.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_answer_attached_too_late_runs_at_once() {
        let answers = Arc::default();
        let (completer, deferral) = defer();
        drop(completer);
        deferral.then(count(&answers));
        assert_eq!(answers.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_completer_lost_to_a_panic_still_answers() {
        let answers = Arc::default();
        let (completer, deferral) = defer();
        deferral.then(count(&answers));
        let lane = std::thread::spawn(move || {
            let _held = completer;
            panic!("a lane dies");
        });
        assert!(lane.join().is_err());
        assert_eq!(answers.load(Ordering::Relaxed), 1);
    }
}
