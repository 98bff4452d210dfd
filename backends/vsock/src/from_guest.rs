//! What the guest's packets do (virtio 1.2 §5.10.6).

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use virtio_backend::Request;

use crate::connection::Phase;
use crate::host;
use crate::hub::Hub;
use crate::packet::{HEADER_LEN, HOST_CID, Header, Op, Ports, TYPE_STREAM};
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
        let key = self.table.add(Phase::Knocking(now), Some(header.ports()));
        if let Some(connection) = self.table.get(key) {
            connection.hear_credit(header);
        }
        self.knock(key, header.ports(), Duration::ZERO);
    }

    /// Tries to connect to the host, `after` the guest asked for it.
    pub(crate) fn knock(&mut self, key: Key, ports: Ports, after: Duration) {
        match self.try_to_connect(key, ports) {
            Ok(true) => {
                if let Some(connection) = self.table.get(key) {
                    connection.phase = Phase::Established;
                    connection.owes_opening = true;
                }
                self.counters().connections_made.fetch_add(1, Relaxed);
                self.table.line_up(key);
            }
            Ok(false) => self.table.set_deadline(key, Some(Instant::now() + after.max(NEXT_KNOCK))),
            Err(error) => {
                tracing::debug!(?ports, %error, "Nobody takes the guest's connection");
                self.end(key);
            }
        }
    }

    /// False if it has to wait.
    fn try_to_connect(&mut self, key: Key, ports: Ports) -> io::Result<bool> {
        match host::connect(&host::place_of_port(&self.place.socket, ports.host))? {
            Some(socket) => self.plug(key, socket).map(|()| true),
            None => Ok(false),
        }
    }
}
