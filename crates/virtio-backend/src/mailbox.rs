//! How other threads ask something of a lane.

use std::io;
use std::sync::PoisonError;

use crate::sync::Mutex;
use crate::{Bell, QueueSetup, RingPosition};

/// Runs when what was asked has been done, with where the queue stands; dropped unrun if the lane ends first, which is as
/// good: an ended lane holds nothing, and has told where its queues stand.
pub(crate) type Done = Box<dyn FnOnce(RingPosition) + Send>;

/// What a lane can be asked.
pub(crate) enum Command {
    /// Finish what is in flight, then end.
    Stop,
    /// Finish what is in flight, then take this queue out of service.
    ResetQueue(usize, Done),
    /// Take this queue into service.
    EnableQueue(usize, QueueSetup),
    /// Let go of guest memory that no request holds.
    ReleaseMemory,
}

/// Commands on their way to a lane, and what wakes it for them.
pub(crate) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    bell: Bell,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { commands: Mutex::default(), bell: Bell::new()? })
    }

    pub(crate) fn post(&self, command: Command) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        // A guest that balloons all the time must not fill the mailbox of a lane that waits for its storage.
        if matches!((commands.last(), &command), (Some(Command::ReleaseMemory), Command::ReleaseMemory)) {
            return;
        }
        commands.push(command);
        drop(commands);
        self.bell.ring();
    }

    /// All there are; the bell rings for those that come later.
    pub(crate) fn take(&self) -> Vec<Command> {
        self.bell.silence();
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a02_requests_to_let_go_of_memory_do_not_pile_up_and_no_other_command_is_lost() {
        let mailbox = Mailbox::new().unwrap();
        (0..1000).for_each(|_| mailbox.post(Command::ReleaseMemory));
        mailbox.post(Command::Stop);
        (0..1000).for_each(|_| mailbox.post(Command::ReleaseMemory));
        mailbox.post(Command::Stop);

        let mut rings = [0; 8];
        rustix::io::read(mailbox.bell(), &mut rings).unwrap();
        let taken = mailbox.take();

        let stops = taken.iter().filter(|command| matches!(command, Command::Stop)).count();
        assert_eq!((taken.len(), stops), (4, 2));
        assert_eq!(u64::from_ne_bytes(rings), 4, "one wake for each");
    }
}
