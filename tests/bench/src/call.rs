//! How a device reaches its driver: an eventfd in the place of an interrupt.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long a device may be silent, in milliseconds: longer than any takes, valgrind included.
const PATIENCE_MS: i32 = 60_000;

/// An eventfd to be slept on. Devices may make it one that does not wait by itself, so it never does.
pub struct Call {
    event: EventFd,
    epoll: Epoll,
}

impl Call {
    /// One that was not written yet.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let (event, epoll) = (EventFd::new(EFD_NONBLOCK)?, Epoll::new()?);
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        Ok(Self { event, epoll })
    }

    /// What the device writes to.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Sleeps until the device has called. Returns how often it did.
    ///
    /// # Errors
    /// It has not for a minute.
    pub fn wait(&self) -> io::Result<u64> {
        match self.epoll.wait(PATIENCE_MS, &mut [EpollEvent::default()]) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => self.event.read(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }
}
