//! What is left of a guest's rate, from one worker to the next.

use std::io;
use std::sync::{Mutex, PoisonError};

use virtio_backend::{Rate, RateLimit};

/// Lends a device's rate limit to its worker of the moment. It survives resets: a driver that resets the device does
/// not get its burst anew.
#[derive(Debug)]
pub(crate) struct Lent {
    rate: Option<Rate>,
    /// A worker that starts and one that ends meet here, if ever.
    limit: Mutex<Option<RateLimit>>,
}

impl Lent {
    pub(crate) fn new(rate: Option<Rate>) -> Self {
        Self { rate, limit: Mutex::default() }
    }

    pub(crate) fn borrow(&self) -> io::Result<Option<RateLimit>> {
        let left = self.limit.lock().unwrap_or_else(PoisonError::into_inner).take();
        left.map(Ok).or_else(|| self.rate.map(RateLimit::new)).transpose()
    }

    pub(crate) fn give_back(&self, limit: Option<RateLimit>) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    }
}
