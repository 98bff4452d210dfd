//! The way to the driver: an eventfd or two for each ring, and the back-end channel. All of them come and go while
//! lanes run; a device and its lanes keep the same line.

use std::error::Error;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_backend::{Fault, Signals};

use crate::channel::Channel;
use crate::eventfd;

/// Where a device's driver is notified, if there is one.
pub(crate) struct Line {
    /// The device's, for log lines.
    name: String,
    rings: Vec<Mutex<Ends>>,
    channel: Mutex<Option<Channel>>,
}

/// A ring's eventfds.
#[derive(Default)]
struct Ends {
    /// Used buffers wait.
    call: Option<OwnedFd>,
    /// The ring has broken.
    err: Option<OwnedFd>,
}

impl Line {
    pub(crate) fn new(name: String, queues: usize) -> Self {
        Self { name, rings: (0..queues).map(|_| Mutex::default()).collect(), channel: Mutex::default() }
    }

    pub(crate) fn set_call(&self, queue: usize, call: Option<OwnedFd>) {
        self.with_ends(queue, |ends| ends.call = call);
    }

    pub(crate) fn set_err(&self, queue: usize, err: Option<OwnedFd>) {
        self.with_ends(queue, |ends| ends.err = err);
    }

    pub(crate) fn set_channel(&self, channel: Option<Channel>) {
        *lock(&self.channel) = channel;
    }

    /// The driver is gone.
    pub(crate) fn disconnect(&self) {
        self.rings.iter().for_each(|ends| *lock(ends) = Ends::default());
        self.set_channel(None);
    }

    /// Tells of used buffers in one queue, whether the driver asked or not.
    pub(crate) fn call(&self, queue: usize) {
        self.with_ends(queue, |ends| ends.call.iter().for_each(eventfd::signal));
    }

    /// Tells that these queues are worked no more.
    pub(crate) fn report(&self, fault: &Fault, queues: Range<usize>) {
        let error: &dyn Error = fault;
        let device = &self.name;
        tracing::warn!(name: "vhost.fault", device, ?queues, error, "Queues stop until the driver resets them");
        for queue in queues {
            self.with_ends(queue, |ends| ends.err.iter().for_each(eventfd::signal));
        }
    }

    fn with_ends(&self, queue: usize, act: impl FnOnce(&mut Ends)) {
        if let Some(ends) = self.rings.get(queue) {
            act(&mut lock(ends));
        }
    }
}

/// No code that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals for Line {
    fn used(&self, queues: &[usize]) {
        tracing::trace!(name: "vhost.used", device = self.name, ?queues);
        queues.iter().for_each(|&queue| self.call(queue));
    }

    /// An eventfd's write.
    fn is_cheap(&self) -> bool {
        true
    }

    fn config_changed(&self) {
        if let Some(channel) = &*lock(&self.channel) {
            channel.config_changed();
        }
    }

    fn needs_reset(&self, fault: &Fault) {
        self.report(fault, 0..self.rings.len());
    }
}

/// The line as one lane uses it, whose faults concern its own queues.
pub(crate) struct LaneLine {
    pub(crate) line: Arc<Line>,
    pub(crate) queues: Range<usize>,
}

impl Signals for LaneLine {
    fn used(&self, queues: &[usize]) {
        self.line.used(queues);
    }

    fn is_cheap(&self) -> bool {
        self.line.is_cheap()
    }

    fn config_changed(&self) {
        self.line.config_changed();
    }

    fn needs_reset(&self, fault: &Fault) {
        self.line.report(fault, self.queues.clone());
    }
}
