//! What other threads leave for the worker's main thread to do.
//!
//! The pump may not wait and a lane has its own work, so both only note what is to be done and ring a bell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_backend::Bell;

use super::reach::Question;
use crate::model::DeviceId;

/// The notes and the bell.
#[derive(Clone)]
pub(super) struct Errands(Arc<Inner>);

struct Inner {
    bell: Bell,
    /// Guest memory went stale since the main thread last looked.
    stale: AtomicBool,
    /// Devices that have come to rest. The threads that end them and the main thread meet here for a moment.
    at_rest: Mutex<Vec<DeviceId>>,
    /// What devices ask the broker.
    questions: Mutex<Vec<Question>>,
}

impl Errands {
    /// None yet.
    ///
    /// # Errors
    /// No eventfd is to be had.
    pub(super) fn new() -> io::Result<Self> {
        let bell = Bell::new()?;
        let (stale, at_rest, questions) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Inner { bell, stale, at_rest, questions })))
    }

    /// Mappings of guest memory went stale. However often it is said, the bell rings once until someone looks.
    pub(super) fn memory_went_stale(&self) {
        if !self.0.stale.swap(true, Ordering::AcqRel) {
            self.0.bell.ring();
        }
    }

    /// A device that was told to stop has nothing in flight any more.
    pub(super) fn came_to_rest(&self, id: DeviceId) {
        self.0.at_rest.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.0.bell.ring();
    }

    /// A device asks for a connection.
    pub(super) fn ask(&self, question: Question) {
        self.0.questions.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        self.0.bell.ring();
    }

    /// Whether memory went stale since the last look.
    pub(super) fn take_stale(&self) -> bool {
        self.0.stale.swap(false, Ordering::AcqRel)
    }

    /// The devices that came to rest since the last look.
    pub(super) fn take_at_rest(&self) -> Vec<DeviceId> {
        std::mem::take(&mut *self.0.at_rest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What devices have asked since the last look.
    pub(super) fn take_questions(&self) -> Vec<Question> {
        std::mem::take(&mut *self.0.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Silences the bell; to be done before looking.
    pub(super) fn silence(&self) {
        self.0.bell.silence();
    }
}

impl AsFd for Errands {
    /// Readable while the bell rings.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}
