//! What happens on the host's side: sockets become ready, programs connect, time passes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use virtio_backend::{Ready, count_failure};

use crate::connection::Phase;
use crate::greeting::{self, Greeting, MOST_BYTES};
use crate::host;
use crate::hub::{Hub, PATIENCE, TIMER};
use crate::table::{Key, LISTENER, Past, key};

/// How often the watcher is asked in a pass: it tells of some at a time, and of each once, unless it changes again.
const MOST_LOOKS: usize = 32;

/// Programs let in at a time, for others to have their turn.
const MOST_CALLERS: usize = 16;

/// How long nobody is let in after the host had no descriptor for one.
const PAUSE: Duration = Duration::from_millis(100);

impl Hub {
    /// Takes note of what has become ready. True if there may be more.
    ///
    /// # Errors
    /// The kernel fails.
    pub(crate) fn look(&mut self) -> io::Result<bool> {
        for _ in 0..MOST_LOOKS {
            let mut none = true;
            for ready in self.watcher.ready()? {
                none = false;
                self.note(ready);
            }
            if none {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn note(&mut self, ready: Ready) {
        match ready.token {
            LISTENER => self.callers = true,
            // Its reason is found among the deadlines.
            TIMER => {}
            token => self.note_socket(key(token), ready),
        }
    }

    fn note_socket(&mut self, key: Key, ready: Ready) {
        // Gone, perhaps, since the kernel told.
        let Some(connection) = self.table.get(key) else { return };
        connection.readable |= ready.readable;
        connection.writable |= ready.writable;
        connection.hung_up |= ready.hung_up;
        match connection.phase {
            Phase::Greeting => self.greet(key),
            Phase::Offered if ready.hung_up => self.lose_interest(key),
            Phase::Offered | Phase::Established => self.settle(key),
            Phase::Asked(_) | Phase::Knocking(_) | Phase::Ended => {}
        }
    }

    /// The program went before the guest answered.
    fn lose_interest(&mut self, key: Key) {
        if self.table.get(key).is_some_and(|connection| connection.owes_opening) {
            // The guest has not heard of it.
            self.forget(key);
        } else {
            self.end(key);
        }
    }

    /// Lets in those who wait at the listening socket. True if there may be more of them.
    pub(crate) fn let_in(&mut self) -> bool {
        for _ in 0..MOST_CALLERS {
            if !self.callers || self.pauses || self.table.is_full() {
                return false;
            }
            match host::accept(&self.place.listener) {
                Ok(Some(socket)) => self.meet(socket),
                Ok(None) => self.callers = false,
                Err(error) => self.pause(&error),
            }
        }
        true
    }

    fn meet(&mut self, socket: OwnedFd) {
        let key = self.table.add(Phase::Greeting, None);
        // What it says is told by the watcher, even if it has been said already.
        match self.plug(key, socket) {
            Ok(()) => self.table.set_deadline(key, Some(Instant::now() + PATIENCE)),
            Err(error) => {
                self.forget(key);
                self.pause(&error);
            }
        }
    }

    fn pause(&mut self, error: &io::Error) {
        self.pauses = true;
        self.table.set_listener_deadline(Instant::now() + PAUSE);
        if let Some(failures) = count_failure(&self.counters().host_failures) {
            tracing::warn!(
                name: "vsock.accept_error", %error, failures, socket = %self.place.socket.display(),
                "Cannot let a program of the host connect to the guest; it waits"
            );
        }
    }

    /// Looks whether a program has said which port it wants.
    fn greet(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        let hung_up = connection.hung_up;
        match connection.socket.as_ref().map(read_greeting) {
            Some(Ok(Some(port))) => {
                connection.phase = Phase::Offered;
                connection.owes_opening = true;
                self.table.name(key, port);
                self.table.set_deadline(key, Some(Instant::now() + PATIENCE));
                self.table.line_up(key);
            }
            Some(Ok(None)) if !hung_up => {}
            _ => self.forget(key),
        }
    }

    /// Does what the time has come for.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        while let Some(past) = self.table.take_past(now) {
            match past {
                Past::Listener => self.pauses = false,
                // Whoever waits for the guest looks at the time.
                Past::Event => {}
                Past::Connection(key) => self.time_out(key, now),
            }
        }
    }

    fn time_out(&mut self, key: Key, now: Instant) {
        let Some(connection) = self.table.get(key) else { return };
        let (phase, ports, is_new) = (connection.phase, connection.ports, connection.owes_opening);
        match phase {
            Phase::Knocking(since) if now < since + PATIENCE => return self.knock(key, since),
            Phase::Greeting => self.forget(key),
            // The guest had no room for the question.
            Phase::Offered if is_new => self.forget(key),
            Phase::Asked(_) | Phase::Knocking(_) | Phase::Offered | Phase::Established | Phase::Ended => self.end(key),
        }
        tracing::debug!(?phase, ?ports, "Someone took too long over a connection");
        self.counters().timeouts.fetch_add(1, Relaxed);
    }
}

/// The port that was asked for, or `None` if the line does not end yet. Takes the line off the socket, and not a byte of
/// what is behind it.
fn read_greeting(socket: &OwnedFd) -> io::Result<Option<u32>> {
    let mut bytes = [0; MOST_BYTES];
    let len = match rustix::net::recv(socket, &mut bytes, RecvFlags::PEEK) {
        Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((_, len)) => len,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match greeting::parse(bytes.get(..len).unwrap_or_default()) {
        Greeting::Port(port, line) => {
            rustix::net::recv(socket, bytes.get_mut(..line).unwrap_or_default(), RecvFlags::empty())?;
            Ok(Some(port))
        }
        Greeting::Unfinished => Ok(None),
        Greeting::Nonsense => Err(io::ErrorKind::InvalidData.into()),
    }
}
