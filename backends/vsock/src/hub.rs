//! Where both sides meet: the connections, and what is done to them from either side.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use virtio_backend::Watcher;

use crate::asking::Asking;
use crate::connection::Phase;
use crate::counters::Counters;
use crate::device::Place;
use crate::packet::{Header, Op};
use crate::table::{Key, LISTENER, Table, token};

/// How long someone may take to accept a connection, or to say where it is to go.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long the end of a connection may take: for the guest to agree, or for the host to take what the guest has sent.
/// Linux gives its own side as long.
pub(crate) const LINGER: Duration = Duration::from_secs(8);

/// Resets kept for packets that belong to no connection. With as many the driver's packets wait until it makes room for
/// the answers (virtio 1.2 §5.10.6.1).
const MOST_RESETS: usize = 256;

/// The token of the timer among what is watched; no key has it, nor has the listener.
pub(crate) const TIMER: u64 = 1;

/// All that is going on between a guest and the host, from one reset to the next.
pub(crate) struct Hub {
    pub(crate) place: Arc<Place>,
    pub(crate) table: Table,
    pub(crate) watcher: Watcher,
    /// The guest's connections that have yet to be made.
    pub(crate) asking: Asking,
    /// For packets that belong to no connection.
    pub(crate) resets: VecDeque<Header>,
    /// Someone may wait at the listening socket.
    pub(crate) callers: bool,
    /// The host had no descriptor for one of them: nobody is let in until the listener's deadline.
    pub(crate) pauses: bool,
}

impl Hub {
    /// Nothing is going on.
    ///
    /// # Errors
    /// The host has no descriptor for it.
    pub(crate) fn new(place: Arc<Place>) -> io::Result<Self> {
        let (table, watcher) = (Table::new()?, Watcher::new()?);
        watcher.add_for_changes(&place.listener, LISTENER)?;
        watcher.add_for_changes(table.timer(), TIMER)?;
        let asking = Asking::new(&place.switchboard);
        Ok(Self { place, table, watcher, asking, resets: VecDeque::new(), callers: false, pauses: false })
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.place.counters
    }

    /// Whether packets of the driver's have to wait.
    pub(crate) fn is_out_of_resources(&self) -> bool {
        self.resets.len() >= MOST_RESETS
    }

    /// Gives a connection its socket.
    ///
    /// # Errors
    /// The host has no memory to watch it.
    pub(crate) fn plug(&mut self, key: Key, socket: OwnedFd) -> io::Result<()> {
        self.watcher.add_for_changes(&socket, token(key))?;
        if let Some(connection) = self.table.get(key) {
            connection.socket = Some(socket);
        }
        Ok(())
    }

    /// The guest is told that there is no such connection; but not in answer to being told so itself.
    pub(crate) fn refuse(&mut self, header: &Header) {
        if header.op() != Some(Op::Rst) {
            self.resets.push_back(header.refusal());
        }
    }

    /// Ends a connection for both sides.
    pub(crate) fn end(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        let before = connection.phase;
        connection.end();
        self.table.set_deadline(key, None);
        self.table.line_up(key);
        self.count_end(before);
    }

    /// Ends a connection that the host failed.
    pub(crate) fn break_off(&mut self, key: Key, error: &io::Error) {
        tracing::debug!(ports = ?self.table.get(key).map(|connection| connection.ports), %error, "A connection broke");
        self.end(key);
    }

    /// Forgets a connection of which the guest knows nothing, or nothing any more.
    pub(crate) fn forget(&mut self, key: Key) {
        if let Some(connection) = self.table.remove(key) {
            self.count_end(connection.phase);
        }
    }

    /// Counts a connection that was in this phase.
    fn count_end(&self, phase: Phase) {
        match phase {
            Phase::Established => self.counters().connections_closed.fetch_add(1, Relaxed),
            Phase::Greeting | Phase::Asked(_) | Phase::Knocking(_) | Phase::Offered => {
                self.counters().connections_refused.fetch_add(1, Relaxed)
            }
            // Was counted when it ended.
            Phase::Ended => 0,
        };
    }

    /// Does what follows from a change in an established connection.
    pub(crate) fn settle(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        if connection.phase == Phase::Established {
            let taken = match connection.flush() {
                Ok(taken) => taken as u64,
                Err(error) => return self.break_off(key, &error),
            };
            let (is_done, lingers) =
                (connection.is_done(), connection.guest_is_done() && connection.deadline.is_none());
            self.counters().bytes_to_host.fetch_add(taken, Relaxed);
            if is_done {
                return self.end(key);
            }
            if lingers {
                self.table.set_deadline(key, Some(Instant::now() + LINGER));
            }
        }
        self.table.line_up(key);
    }
}
