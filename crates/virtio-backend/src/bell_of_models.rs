//! A bell in a model: what an eventfd does, of which `loom` sees nothing, done by what it sees.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use loom::sync::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};

/// As the real one, but for its descriptor, which never becomes readable.
#[derive(Debug)]
pub struct Bell {
    rings: Mutex<bool>,
    descriptor: OwnedFd,
}

impl Bell {
    /// See the real one.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { rings: Mutex::new(false), descriptor: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// See the real one.
    pub fn ring(&self) {
        *self.rings() = true;
    }

    /// See the real one.
    pub fn silence(&self) {
        *self.rings() = false;
    }

    /// Whether whoever waits for it wakes.
    pub fn is_ringing(&self) -> bool {
        *self.rings()
    }

    fn rings(&self) -> MutexGuard<'_, bool> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
