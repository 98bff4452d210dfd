//! The guest's connections to the host, on their way: the device asks for each, and may wait for the answer.
//!
//! A device asks for a few at a time, over all resets; other connections line up until it is their turn. So a guest that
//! wants thousands, or resets its device again and again, has as little under way as any other. An answer that comes to a
//! driver which has gone, or to a connection that has ended, is closed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_backend::reach::Then;
use virtio_backend::{Bell, Reach};

use crate::table::{Key, MOST_CONNECTIONS};

/// Questions of a device under way at a time.
const MOST_ASKED: usize = 32;

/// The device's way to ask, which outlives its drivers.
pub(crate) struct Switchboard {
    reach: Arc<dyn Reach>,
    asked: AtomicUsize,
    /// Rung when there is an answer, and so room for another question.
    pub(crate) bell: Bell,
}

impl Switchboard {
    /// # Errors
    /// The host has no descriptor for it.
    pub(crate) fn new(reach: Arc<dyn Reach>) -> io::Result<Self> {
        Ok(Self { reach, asked: AtomicUsize::new(0), bell: Bell::new()? })
    }
}

/// The questions of one driver's connections, from one reset to the next.
pub(crate) struct Asking {
    switchboard: Arc<Switchboard>,
    /// Who waits to ask, and for which port.
    row: VecDeque<(Key, u32)>,
    /// What has come. Threads that answer and the lane meet here for a moment.
    answers: Arc<Mutex<Vec<Answer>>>,
}

/// Whose it is, and what came of it.
pub(crate) type Answer = (Key, io::Result<OwnedFd>);

impl Asking {
    pub(crate) fn new(switchboard: &Arc<Switchboard>) -> Self {
        Self { switchboard: Arc::clone(switchboard), row: VecDeque::new(), answers: Arc::default() }
    }

    /// Asks for a connection to a port of the host, when it is its turn.
    pub(crate) fn line_up(&mut self, key: Key, port: u32) {
        self.row.push_back((key, port));
    }

    /// Asks for those whose turn it is. Those that nobody `wants` any more are left out.
    pub(crate) fn ask(&mut self, mut wants: impl FnMut(Key) -> bool) {
        if self.row.len() > 2 * MOST_CONNECTIONS {
            // No more than there are connections; a driver can give up any number while the host is slow.
            self.row.retain(|(key, _)| wants(*key));
        }
        while self.switchboard.asked.load(SeqCst) < MOST_ASKED {
            let Some((key, port)) = self.row.pop_front() else { return };
            if !wants(key) {
                continue;
            }
            self.switchboard.asked.fetch_add(1, SeqCst);
            let (switchboard, answers) = (Arc::clone(&self.switchboard), Arc::downgrade(&self.answers));
            let then = Then::new(move |outcome| {
                switchboard.asked.fetch_sub(1, SeqCst);
                if let Some(answers) = answers.upgrade() {
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push((key, outcome));
                }
                switchboard.bell.ring();
            });
            self.switchboard.reach.ask(port, then);
        }
    }

    /// What has come since the last look.
    pub(crate) fn take_answers(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
