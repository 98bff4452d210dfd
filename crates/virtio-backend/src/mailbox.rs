//! How other threads ask something of a lane.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::RingSetup;

/// Runs when what was asked has been done; dropped unrun if the lane ends first, which is as good:
/// an ended lane holds nothing.
pub(crate) type Done = Box<dyn FnOnce() + Send>;

/// What a lane can be asked.
pub(crate) enum Command {
    /// Finish what is in flight, then end.
    Stop,
    /// Finish what is in flight, then take this queue out of service.
    ResetQueue(usize, Done),
    /// Take this queue into service.
    EnableQueue(usize, RingSetup),
    /// Let go of guest memory that no request holds.
    ReleaseMemory,
}

/// Commands on their way to a lane, and the eventfd that wakes it for them.
pub(crate) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    bell: EventFd,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { commands: Mutex::default(), bell: EventFd::new(EFD_NONBLOCK)? })
    }

    pub(crate) fn post(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        // It fails only at 2^64-2 unread wakes; the lane is awake then.
        let _ = self.bell.write(1);
    }

    pub(crate) fn take(&self) -> Vec<Command> {
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }
}
