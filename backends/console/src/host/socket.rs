//! A port that ends in a listening socket. One reader at a time: two would each get a part of what is printed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use virtio_backend::{Interest, Ready};

use super::stream::{Pumped, Stream};
use super::{End, READABLE, Side};

const LISTENER: u64 = 0;
const CONNECTION: u64 = 1;

/// See the module.
pub(super) struct Socket {
    listener: OwnedFd,
    connection: Option<Stream>,
    /// Somebody may wait to be let in.
    has_visitor: bool,
    /// The listener is watched.
    listens: bool,
}

impl Socket {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self { listener, connection: None, has_visitor: false, listens: true }
    }

    fn let_in(&mut self, side: &Side<'_>) {
        while self.has_visitor {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(visitor) if self.connection.is_none() => {
                    self.connection = Some(Stream::both(visitor, CONNECTION));
                    side.attach();
                }
                Ok(_one_too_many) => {
                    side.shared.counters.readers_refused.fetch_add(1, Relaxed);
                }
                Err(Errno::AGAIN) => {
                    self.has_visitor = false;
                    self.listen(side, true);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // No descriptor is free, most likely. Whoever waits is let in when something else happens.
                Err(errno) => {
                    side.note_failure("letting a reader in", &errno.into());
                    return self.listen(side, false);
                }
            }
        }
    }

    fn listen(&mut self, side: &Side<'_>, listens: bool) {
        if self.listens != listens {
            let interest = Interest { readable: listens, writable: false };
            if side.watcher.change(&self.listener, side.token(LISTENER), interest).is_ok() {
                self.listens = listens;
            }
        }
    }
}

impl End for Socket {
    fn start(&mut self, side: &Side<'_>) -> io::Result<()> {
        side.watcher.add(&self.listener, side.token(LISTENER), READABLE)
    }

    fn ready(&mut self, role: u64, ready: Ready) {
        match &mut self.connection {
            Some(connection) if role == CONNECTION => connection.ready(ready),
            _ => self.has_visitor |= role == LISTENER,
        }
    }

    fn pump(&mut self, side: &Side<'_>) -> bool {
        let pumped = self.connection.as_mut().map(|connection| connection.pump(side));
        if pumped == Some(Pumped::Ended) {
            self.connection = None;
            side.detach();
        }
        let was_alone = self.connection.is_none();
        self.let_in(side);
        pumped == Some(Pumped::More) || (was_alone && self.connection.is_some())
    }
}
