//! What the guest's packets do (virtio 1.2 §5.10.6).

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use virtio_backend::Request;

use crate::connection::{Connection, Phase};
use crate::counters::Counters;
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
        let (op, counters) = (header.op(), &self.place.counters);
        if op == Some(Op::Rst) {
            return self.forget(key);
        }
        if connection.phase == Phase::Ended {
            // The guest will know when it makes room for our reset.
            return;
        }
        if !connection.hear_credit(header) {
            counters.malformed.fetch_add(1, Relaxed);
        }
        let is_allowed = match (op, connection.phase) {
            (Some(Op::Response), Phase::Offered) => {
                let accepted = connection.accept();
                if matches!(accepted, Ok(true)) {
                    counters.connections_accepted.fetch_add(1, Relaxed);
                    self.table.set_deadline(key, None);
                }
                accepted
            }
            (Some(Op::Rw), Phase::Established) => deliver(connection, header, packet, counters),
            (Some(Op::Shutdown), Phase::Established) => {
                connection.hear_shutdown(header.flags.get());
                Ok(true)
            }
            (Some(Op::CreditRequest), Phase::Established) => {
                connection.owes_credit = true;
                Ok(true)
            }
            (Some(Op::CreditUpdate), _) => Ok(true),
            _ => Ok(false),
        };
        match is_allowed {
            Ok(true) => self.settle(key),
            Ok(false) => {
                tracing::debug!(?header, "The guest broke a rule of its connection, which ends");
                self.count_malformed();
                self.end(key);
            }
            Err(error) => self.break_off(key, &error),
        }
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

/// Passes data on to the host. False if the guest may not send it.
///
/// # Errors
/// The connection is broken.
fn deliver(connection: &mut Connection, header: &Header, packet: &Request, counters: &Counters) -> io::Result<bool> {
    let len = header.len.get() as usize;
    if len > packet.readable.len().saturating_sub(HEADER_LEN) || !connection.may_take(len) {
        return Ok(false);
    }
    let taken = connection.deliver(&packet.readable, len)?;
    counters.bytes_to_host.fetch_add(taken as u64, Relaxed);
    Ok(true)
}
