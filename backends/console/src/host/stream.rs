//! A descriptor that does not block, to which output goes and from which input comes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, read, write};
use virtio_backend::{Interest, Ready};

use super::Side;

/// Bytes moved by one system call.
const CHUNK: usize = 4096;

/// System calls in each direction before others have their turn.
const MOST_CALLS: usize = 16;

/// How one direction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// A call may move something.
    Ready,
    /// The last call would have blocked: the descriptor is watched.
    Blocked,
    /// There is no such direction, or no more.
    Ended,
}

/// What came of moving bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// All that can be moved now.
    All,
    /// There is more to move at once.
    More,
    /// The other end is gone, and all it has sent was taken.
    Ended,
}

/// See the module. Watched for exactly what it waits for, so that what is left lying does not wake the thread.
pub(super) struct Stream {
    fd: OwnedFd,
    role: u64,
    input: Flow,
    output: Flow,
    /// The other end is gone; what it sent may still lie there.
    is_gone: bool,
    watched: Option<Interest>,
}

impl Stream {
    /// Moves in both directions.
    pub(super) fn both(fd: OwnedFd, role: u64) -> Self {
        Self { fd, role, input: Flow::Ready, output: Flow::Ready, is_gone: false, watched: None }
    }

    /// Input alone.
    pub(super) fn input(fd: OwnedFd, role: u64) -> Self {
        Self { output: Flow::Ended, ..Self::both(fd, role) }
    }

    /// Output alone.
    pub(super) fn output(fd: OwnedFd, role: u64) -> Self {
        Self { input: Flow::Ended, ..Self::both(fd, role) }
    }

    /// Of which the other end has yet to come.
    pub(super) fn dormant(fd: OwnedFd, role: u64) -> Self {
        Self { input: Flow::Ended, output: Flow::Ended, is_gone: true, ..Self::both(fd, role) }
    }

    /// The other end has come; `stays` is false if it has gone again already.
    pub(super) fn revive(&mut self, stays: bool) {
        self.input = Flow::Ready;
        self.output = if stays { Flow::Ready } else { Flow::Ended };
        self.is_gone = !stays;
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The descriptor is ready.
    pub(super) fn ready(&mut self, ready: Ready) {
        if ready.hung_up {
            self.is_gone = true;
            self.output = Flow::Ended;
        }
        if ready.readable && self.input == Flow::Blocked {
            self.input = Flow::Ready;
        }
        if ready.writable && self.output == Flow::Blocked {
            self.output = Flow::Ready;
        }
    }

    /// Moves what can be moved.
    pub(super) fn pump(&mut self, side: &Side<'_>) -> Pumped {
        let more = self.take_input(side) | self.give_output(side);
        if self.is_gone && self.input != Flow::Ready {
            self.input = Flow::Ended;
            self.watch(side, None);
            return Pumped::Ended;
        }
        // The end of the other side would be told again and again.
        let interest = Interest { readable: self.input == Flow::Blocked, writable: self.output == Flow::Blocked };
        self.watch(side, (!self.is_gone).then_some(interest));
        if more { Pumped::More } else { Pumped::All }
    }

    fn take_input(&mut self, side: &Side<'_>) -> bool {
        let mut bytes = [0; CHUNK];
        for _ in 0..MOST_CALLS {
            let room = side.port.input_room().min(CHUNK);
            let Some(bytes) = bytes.get_mut(..room).filter(|_| self.input == Flow::Ready && room > 0) else {
                return false;
            };
            match read(&self.fd, &mut *bytes) {
                Ok(0) => self.input = Flow::Ended,
                Ok(count) => side.put_input(bytes.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN) => self.input = Flow::Blocked,
                Err(Errno::INTR) => {}
                // A pty says EIO when its terminal was closed, a socket ECONNRESET: the ways of the other end to go.
                Err(_gone) => {
                    self.input = Flow::Ended;
                    self.is_gone = true;
                    self.output = Flow::Ended;
                }
            }
        }
        true
    }

    fn give_output(&mut self, side: &Side<'_>) -> bool {
        let mut bytes = [0; CHUNK];
        for _ in 0..MOST_CALLS {
            if self.output != Flow::Ready {
                return false;
            }
            let count = side.port.next_output(&mut bytes);
            let Some(bytes) = bytes.get(..count).filter(|bytes| !bytes.is_empty()) else { return false };
            let written = write(&self.fd, bytes);
            side.sent(written.unwrap_or(0));
            match written {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.output = Flow::Blocked,
                Err(_gone) => {
                    self.is_gone = true;
                    self.output = Flow::Ended;
                }
            }
        }
        true
    }

    fn watch(&mut self, side: &Side<'_>, interest: Option<Interest>) {
        if interest == self.watched {
            return;
        }
        let token = side.token(self.role);
        let outcome = match (self.watched, interest) {
            (None, Some(interest)) => side.watcher.add(&self.fd, token, interest),
            (Some(_), Some(interest)) => side.watcher.change(&self.fd, token, interest),
            (_, None) => {
                // It fails for what cannot be watched, see below.
                let _ = side.watcher.remove(&self.fd);
                Ok(())
            }
        };
        match outcome {
            // A regular file cannot be watched and need not be: it never blocks.
            Err(error) if error.raw_os_error() != Some(Errno::PERM.raw_os_error()) => self.give_up(side, &error),
            _ => self.watched = interest,
        }
    }

    /// Without being watched it would be dead without anyone's noticing.
    fn give_up(&mut self, side: &Side<'_>, error: &io::Error) {
        side.note_failure("watching for a reader", error);
        (self.is_gone, self.input, self.output) = (true, Flow::Ended, Flow::Ended);
    }
}
