//! All connections: by key, by name, by whose turn it is and by deadline.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use slotmap::{DefaultKey, Key as _, KeyData, SlotMap};

use crate::connection::{Connection, Phase};
use crate::deadlines::Deadlines;
use crate::packet::Ports;

/// A connection's key. Never that of another one, later.
pub(crate) type Key = DefaultKey;

/// Connections at a time, whatever their state: each costs a descriptor.
pub(crate) const MOST_CONNECTIONS: usize = 1024;

/// How many of them get [`ROOMY`], so that all that do not read have 32 MiB of a guest's data in the host's memory.
const MOST_ROOMY: usize = 64;

/// Bytes that a connection keeps for the host: what a guest may have under way, and so its throughput.
const ROOMY: u32 = 256 << 10;

/// The same for those that come when there are many.
const NARROW: u32 = 16 << 10;

/// The tokens of deadlines that belong to no connection; no key has them.
pub(crate) const LISTENER: u64 = 0;
const EVENT: u64 = 1;

/// The connections of one guest.
pub(crate) struct Table {
    connections: SlotMap<Key, Connection>,
    named: HashMap<Ports, Key>,
    /// Who may have something for the guest, each at most once.
    row: VecDeque<Key>,
    deadlines: Deadlines,
    roomy: usize,
    last_port: u32,
}

/// Ports given to connections from the host, when their programs have none of their own: beyond what anybody listens at.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// Of what a deadline tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    Connection(Key),
    Listener,
    Event,
}

impl Table {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            connections: SlotMap::new(),
            named: HashMap::new(),
            row: VecDeque::new(),
            deadlines: Deadlines::new()?,
            roomy: 0,
            last_port: HOST_PORTS.start,
        })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.connections.len() >= MOST_CONNECTIONS
    }

    /// Adds a connection. One that has ports is found by them.
    pub(crate) fn add(&mut self, phase: Phase, ports: Option<Ports>) -> Key {
        let room = if self.roomy < MOST_ROOMY { ROOMY } else { NARROW };
        self.roomy += usize::from(room == ROOMY);
        let key = self.connections.insert(Connection::new(phase, ports.unwrap_or_default(), room));
        if let Some(ports) = ports {
            self.named.insert(ports, key);
        }
        key
    }

    /// Gives a connection of the host's a port there, for it to be found by.
    pub(crate) fn name(&mut self, key: Key, guest: u32) {
        let next = |port| if HOST_PORTS.contains(&(port + 1)) { port + 1 } else { HOST_PORTS.start };
        // Ends: there are more ports than connections.
        let mut ports = Ports { host: next(self.last_port), guest };
        while self.named.contains_key(&ports) {
            ports.host = next(ports.host);
        }
        self.last_port = ports.host;
        if let Some(connection) = self.connections.get_mut(key) {
            connection.ports = ports;
            self.named.insert(ports, key);
        }
    }

    /// Forgets a connection, and closes its socket.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Connection> {
        let connection = self.connections.remove(key)?;
        if self.named.get(&connection.ports) == Some(&key) {
            self.named.remove(&connection.ports);
        }
        if connection.has_turn {
            self.row.retain(|other| *other != key);
        }
        if let Some(moment) = connection.deadline {
            self.deadlines.remove(moment, token(key));
        }
        self.roomy -= usize::from(connection.credit.room() == ROOMY);
        Some(connection)
    }

    pub(crate) fn find(&self, ports: Ports) -> Option<Key> {
        self.named.get(&ports).copied()
    }

    pub(crate) fn get(&mut self, key: Key) -> Option<&mut Connection> {
        self.connections.get_mut(key)
    }

    /// Whoever has something for the guest gets a turn.
    pub(crate) fn line_up(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.has_turn && connection.next().is_some() {
            connection.has_turn = true;
            self.row.push_back(key);
        }
    }

    /// Whose turn it is. It stays first.
    pub(crate) fn first_in_line(&mut self) -> Option<(Key, &mut Connection)> {
        while let Some(&key) = self.row.front() {
            match self.connections.get_mut(key) {
                Some(connection) if connection.next().is_some() => break,
                Some(connection) => connection.has_turn = false,
                None => {}
            }
            self.row.pop_front();
        }
        let key = *self.row.front()?;
        self.connections.get_mut(key).map(|connection| (key, connection))
    }

    /// Ends the turn of the first.
    pub(crate) fn next_in_line(&mut self) {
        let first = self.row.pop_front();
        self.row.extend(first);
    }

    /// Sets or takes back the deadline of a connection.
    pub(crate) fn set_deadline(&mut self, key: Key, moment: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(old) = connection.deadline.take() {
            self.deadlines.remove(old, token(key));
        }
        if let Some(moment) = moment {
            self.deadlines.add(moment, token(key));
        }
        connection.deadline = moment;
    }

    /// Sets the deadline of the listener.
    pub(crate) fn set_listener_deadline(&mut self, moment: Instant) {
        self.deadlines.add(moment, LISTENER);
    }

    /// Sets the deadline of the guest's hearing of an event.
    pub(crate) fn set_event_deadline(&mut self, moment: Instant) {
        self.deadlines.add(moment, EVENT);
    }

    /// Takes one whose deadline has passed.
    pub(crate) fn take_past(&mut self, now: Instant) -> Option<Past> {
        let key = match self.deadlines.take_past(now)? {
            LISTENER => return Some(Past::Listener),
            EVENT => return Some(Past::Event),
            token => key(token),
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.deadline = None;
        }
        Some(Past::Connection(key))
    }

    /// Sees to it that the timer fires for the first deadline.
    pub(crate) fn arm(&mut self, now: Instant) -> io::Result<()> {
        self.deadlines.arm(now)
    }

    /// Becomes readable when a deadline has passed.
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.deadlines.as_fd()
    }
}

/// What descriptors and deadlines of a connection are known by.
pub(crate) fn token(key: Key) -> u64 {
    key.data().as_ffi()
}

/// Whose token it is.
pub(crate) fn key(token: u64) -> Key {
    KeyData::from_ffi(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_the_guest_uses_already_is_passed_over_and_the_first_comes_after_the_last() {
        let mut table = Table::new().unwrap();
        let (start, end) = (HOST_PORTS.start, HOST_PORTS.end);
        // The guest may name any port of the host's as it likes.
        for host in [end - 1, start, start + 1] {
            table.add(Phase::Established, Some(Ports { host, guest: 7 }));
        }
        table.last_port = end - 3;
        let mut named = |guest| {
            let key = table.add(Phase::Offered, None);
            table.name(key, guest);
            let ports = table.get(key).unwrap().ports;
            assert_eq!((table.find(ports), ports.guest), (Some(key), guest));
            ports.host
        };
        assert_eq!([named(7), named(7), named(8), named(7)], [end - 2, start + 2, start + 3, start + 4]);
    }
}
