//! What is kept for the process that follows if this one dies: that there may be connections.
//!
//! They are sockets of the process, and end with it. Programs on the host see that. The guest does not, so whoever follows
//! has to [tell it](crate::interruption).

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_backend::{Memo, Record};

/// See the module.
#[derive(Default)]
pub(crate) struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    memo: Option<Memo<Noted>>,
    /// A former process has died, and its driver has not heard of it.
    was_interrupted: bool,
}

/// What is noted.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    /// A driver has been using the device since it last chose features.
    in_use: bool,
}

impl Kept {
    /// Keeps it here from now on.
    pub(crate) fn keep(&self, record: &Record) {
        let memo = record.device::<Noted>();
        let was_interrupted = memo.load().map(|noted| noted.is_some_and(|noted| noted.in_use));
        *self.state() = State {
            memo: Some(memo),
            was_interrupted: was_interrupted.unwrap_or_else(|error| {
                // One reset too many costs connections, one too few leaves them hanging.
                tracing::warn!(name: "vsock.unknown_past", %error, "The guest is told that its connections are gone");
                true
            }),
        };
    }

    /// A driver begins anew: it has no connections.
    pub(crate) fn begin_anew(&self) {
        let mut state = self.state();
        state.was_interrupted = false;
        state.note(false);
    }

    /// The driver uses the device from now on. Tells whether it may have connections of a process that died.
    pub(crate) fn begin_use(&self) -> bool {
        let state = self.state();
        state.note(true);
        state.was_interrupted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&self, in_use: bool) {
        let noted = self.memo.as_ref().map_or(Ok(()), |memo| memo.store(&Noted { in_use }));
        if let Err(error) = noted {
            tracing::error!(name: "vsock.unsaved", %error, "If this process dies the guest does not hear of it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_past_that_makes_no_sense_is_taken_for_one_with_connections() {
        let record = Record::new().unwrap();
        let kept = Kept::default();
        kept.keep(&record);
        assert!(!kept.begin_use(), "a device that is new");

        record.device::<&str>().store(&"scribbled over").unwrap();
        kept.keep(&record);
        assert!(kept.begin_use());

        kept.begin_anew();
        assert!(!kept.begin_use(), "its next driver has none");
    }
}
