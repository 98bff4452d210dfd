//! A connection in use: both halves, and what the kernel said of the socket last.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::NbdError;
use super::dialer::Connected;
use super::export::Export;
use super::receiver::{Received, Receiver};
use super::sender::Sender;
use super::task::{Next, Outgoing, Sent, Tasks};

/// See the module.
pub(super) struct Connection {
    connected: Connected,
    sender: Sender,
    receiver: Receiver,
    /// A read may bring something.
    pub(super) readable: bool,
    /// A write may go out.
    pub(super) writable: bool,
    /// It has answered something.
    pub(super) is_proven: bool,
    /// When the server last said something, or had nothing to say.
    pub(super) heard: Instant,
    cookies: u64,
}

/// What came of an exchange.
pub(super) enum Event {
    /// The server has answered the request of this tag.
    Answer(u16),
    /// The operation of this tag needs no request.
    NothingToSend(u16),
    /// All for now.
    Idle,
    /// The server has more to say, later.
    More,
}

impl Connection {
    pub(super) fn new(connected: Connected) -> io::Result<Self> {
        Ok(Self {
            connected,
            sender: Sender::default(),
            receiver: Receiver::new()?,
            readable: true,
            writable: true,
            is_proven: false,
            heard: Instant::now(),
            cookies: 0,
        })
    }

    pub(super) fn export(&self) -> &Export {
        &self.connected.export
    }

    /// The connection, if nothing is under way on it.
    pub(super) fn into_idle(self) -> Option<Connected> {
        (self.sender.is_empty() && self.receiver.is_idle()).then_some(self.connected)
    }

    /// Sends what waits and reads what has come, up to the first thing worth telling.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(super) fn exchange(&mut self, tasks: &mut Tasks, queue: &mut VecDeque<u16>) -> Result<Event, NbdError> {
        if self.writable
            && let Some(tag) = self.send(tasks, queue)?
        {
            return Ok(Event::NothingToSend(tag));
        }
        if !self.readable {
            return Ok(Event::Idle);
        }
        let (socket, export) = (self.connected.socket.as_fd(), &self.connected.export);
        match self.receiver.receive(socket, tasks, export, self.sender.in_use())? {
            Received::Answer(tag) => Ok(Event::Answer(tag)),
            Received::Nothing => {
                self.readable = false;
                self.end_turn();
                Ok(Event::Idle)
            }
            Received::Enough => {
                self.end_turn();
                Ok(Event::More)
            }
        }
    }

    fn end_turn(&mut self) {
        if self.receiver.rest() {
            self.heard = Instant::now();
        }
    }

    /// Sends requests of the operations in `queue` as long as the kernel takes them. Returns one that needs none.
    fn send(&mut self, tasks: &mut Tasks, queue: &mut VecDeque<u16>) -> Result<Option<u16>, NbdError> {
        loop {
            while self.sender.has_room() {
                let Some(tag) = queue.pop_front() else { break };
                let Some(task) = tasks.get_mut(tag) else { continue };
                match task.next(&self.connected.export) {
                    Next::Nothing => return Ok(Some(tag)),
                    Next::Send(request) => {
                        self.cookies += 1;
                        let cookie = self.cookies << 16 | u64::from(tag);
                        task.sent = Some(sent(cookie, &request));
                        self.sender.add(tag, cookie, &request);
                    }
                }
            }
            if self.sender.is_empty() {
                return Ok(None);
            }
            match self.sender.send(self.connected.socket.as_fd(), tasks) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connected.socket.as_fd()
    }
}

fn sent(cookie: u64, request: &Outgoing) -> Sent {
    let Outgoing { kind, offset, len, .. } = *request;
    Sent {
        cookie,
        kind,
        offset,
        len: len.into(),
        coverage: super::coverage::Coverage::default(),
        errors: 0,
        error: None,
    }
}
