//! Reading and writing whole messages on a socket that never blocks, until a deadline. For the handshake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::NbdError;

/// When a conversation has to be over, whoever delays it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    end: Instant,
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Self {
        Self { end: Instant::now() + whole, whole }
    }

    /// `None` if it has passed.
    pub(super) fn left(self) -> Option<Duration> {
        self.end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// A socket, and the patience with its peer.
#[derive(Debug)]
pub(super) struct Patient {
    socket: OwnedFd,
    deadline: Deadline,
}

impl Patient {
    pub(super) fn new(socket: OwnedFd, deadline: Deadline) -> Self {
        Self { socket, deadline }
    }

    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Reads what has a fixed size.
    pub(super) fn read<T: FromBytes + IntoBytes>(&mut self) -> Result<T, NbdError> {
        let mut value = T::new_zeroed();
        self.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }

    pub(super) fn read_exact(&mut self, mut to: &mut [u8]) -> Result<(), NbdError> {
        while !to.is_empty() {
            match recv(&self.socket, &mut *to, RecvFlags::empty()) {
                Ok((0, _)) => return Err(NbdError::Ended),
                Ok((read, _)) => to = to.split_at_mut(read.min(to.len())).1,
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, value: &(impl IntoBytes + Immutable + ?Sized)) -> Result<(), NbdError> {
        let mut from = value.as_bytes();
        while !from.is_empty() {
            match send(&self.socket, from, SendFlags::NOSIGNAL) {
                Ok(sent) => from = from.split_at(sent.min(from.len())).1,
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    fn wait(&self, event: PollFlags) -> Result<(), NbdError> {
        let hung = NbdError::Hung { seconds: self.deadline.whole.as_secs() };
        let Some(left) = self.deadline.left() else { return Err(hung) };
        poll_for(self.socket.as_fd(), event, left).map_err(NbdError::Host)
    }
}

/// Waits until `fd` is ready, or so long.
pub(super) fn poll_for(fd: BorrowedFd<'_>, event: PollFlags, longest: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(longest).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(&fd, event)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
