//! What the guest's packets do (virtio 1.2 §5.10.6).

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use virtio_backend::Request;

use crate::connection::Phase;
use crate::hub::{Hub, PATIENCE};
use crate::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use crate::table::Key;

/// After how long a second attempt is made to connect where too many wait already. Further ones come after as much time
/// as has passed already, so that a thousand who knock are no storm.
const NEXT_KNOCK: Duration = Duration::from_millis(10);

impl Hub {
    /// Takes a packet of the driver's.
    pub(crate) fn take(&mut self, packet: &Request) {
        let Some(header) = Header::read(&packet.readable) else { return self.count_malformed() };
        tracing::trace!(name: "vsock.from_guest", ?header);
        self.counters().packets_in.fetch_add(1, Relaxed);
        if header.src_cid.get() != self.place.cid {
            // Nobody is there who could be answered.
            return self.count_malformed();
        }
        if header.kind.get() != TYPE_STREAM || header.dst_cid.get() != HOST_CID {
            return self.refuse(&header);
        }
        match self.table.find(header.ports()) {
            Some(key) => self.hear(key, &header, packet),
            None if header.op() == Some(Op::Request) => self.call(&header),
            None => self.refuse(&header),
        }
    }

    fn count_malformed(&self) {
        self.counters().malformed.fetch_add(1, Relaxed);
    }

    /// Takes a packet of a connection.
    fn hear(&mut self, key: Key, header: &Header, packet: &Request) {
        let Some(connection) = self.table.get(key) else { return };
        let op = header.op();
        if op == Some(Op::Rst) {
            return self.forget(key);
        }
        let phase = connection.phase;
        if phase == Phase::Ended {
            // The guest will know when it makes room for our reset.
            return;
        }
        if !connection.hear_credit(header) {
            self.count_malformed();
        }
        let is_allowed = match (op, phase) {
            (Some(Op::Response), Phase::Offered) => self.accept_offer(key),
            (Some(Op::Rw), Phase::Established) => self.deliver(key, header, packet),
            (Some(Op::Shutdown), Phase::Established) => {
                if let Some(connection) = self.table.get(key) {
                    connection.hear_shutdown(header.flags.get());
                }
                true
            }
            (Some(Op::CreditRequest), Phase::Established) => {
                if let Some(connection) = self.table.get(key) {
                    connection.owes_credit = true;
                }
                true
            }
            (Some(Op::CreditUpdate), _) => true,
            _ => false,
        };
        if is_allowed {
            self.settle(key);
        } else {
            tracing::debug!(?header, "The guest broke a rule of its connection, which ends");
            self.count_malformed();
            self.end(key);
        }
    }

    /// Passes data on. False if the guest may not send it.
    fn deliver(&mut self, key: Key, header: &Header, packet: &Request) -> bool {
        let len = header.len.get() as usize;
        let Some(connection) = self.table.get(key) else { return true };
        if len > packet.readable.len().saturating_sub(HEADER_LEN) || !connection.may_take(len) {
            return false;
        }
        match connection.deliver(&packet.readable, len) {
            Ok(taken) => {
                self.counters().bytes_to_host.fetch_add(taken as u64, Relaxed);
            }
            Err(error) => self.break_off(key, &error),
        }
        true
    }

    /// The guest accepts a connection from the host.
    fn accept_offer(&mut self, key: Key) -> bool {
        let Some(connection) = self.table.get(key) else { return true };
        let Some(socket) = connection.socket.as_ref().filter(|_| !connection.owes_opening) else {
            // It has not been asked.
            return false;
        };
        let answer = format!("OK {}\n", connection.ports.host);
        // It is the first on this socket, so that there is room for it.
        if rustix::io::write(socket, answer.as_bytes()) != Ok(answer.len()) {
            self.end(key);
            return true;
        }
        connection.phase = Phase::Established;
        self.table.set_deadline(key, None);
        self.counters().connections_accepted.fetch_add(1, Relaxed);
        true
    }

    /// The guest wants to connect to a program on the host.
    fn call(&mut self, header: &Header) {
        if self.table.is_full() {
            self.counters().connections_refused.fetch_add(1, Relaxed);
            return self.refuse(header);
        }
        let now = Instant::now();
        let key = self.table.add(Phase::Asked(now), Some(header.ports()));
        if let Some(connection) = self.table.get(key) {
            connection.hear_credit(header);
        }
        self.knock(key, now);
    }

    /// Has the host asked for a connection that the guest has wanted `since` then.
    pub(crate) fn knock(&mut self, key: Key, since: Instant) {
        let Some(connection) = self.table.get(key) else { return };
        connection.phase = Phase::Asked(since);
        let port = connection.ports.host;
        self.table.set_deadline(key, Some(since + PATIENCE));
        self.asking.line_up(key, port);
        self.ask();
    }

    /// Asks for the connections whose turn it is.
    fn ask(&mut self) {
        let table = &mut self.table;
        self.asking.ask(|key| table.get(key).is_some_and(|connection| matches!(connection.phase, Phase::Asked(_))));
    }

    /// Takes the host's answers, and asks on.
    pub(crate) fn take_answers(&mut self) {
        for (key, outcome) in self.asking.take_answers() {
            let Some(Phase::Asked(since)) = self.table.get(key).map(|connection| connection.phase) else { continue };
            match outcome.and_then(|socket| self.plug(key, socket)) {
                Ok(()) => self.connected(key),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_to_knock(key, since),
                Err(error) => {
                    let ports = self.table.get(key).map(|connection| connection.ports);
                    tracing::debug!(?ports, %error, "Nobody takes the guest's connection");
                    self.end(key);
                }
            }
        }
        self.ask();
    }

    /// The host has accepted the guest's connection.
    fn connected(&mut self, key: Key) {
        if let Some(connection) = self.table.get(key) {
            connection.phase = Phase::Established;
            connection.owes_opening = true;
        }
        self.table.set_deadline(key, None);
        self.counters().connections_made.fetch_add(1, Relaxed);
        self.table.line_up(key);
    }

    /// Too many wait at the host's socket already.
    fn wait_to_knock(&mut self, key: Key, since: Instant) {
        if let Some(connection) = self.table.get(key) {
            connection.phase = Phase::Knocking(since);
        }
        let now = Instant::now();
        self.table.set_deadline(key, Some(now + (now - since).max(NEXT_KNOCK)));
    }
}
