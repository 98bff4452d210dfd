//! One connection: how far it has come, what either side has said, and the socket.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Instant;

use guest_memory::{Buffers, Part, read_vectored, write_vectored};
use rustix::net::Shutdown;

use crate::backlog::Backlog;
use crate::credit::Credit;
use crate::packet::{HEADER_LEN, Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A program on the host has connected, and has yet to say to which port.
    Greeting,
    /// The guest wants to connect, since this moment, and the host has been asked, or is about to be.
    Asked(Instant),
    /// The guest wants to connect, since this moment, and too many wait at the host's socket.
    Knocking(Instant),
    /// The guest is asked whether it accepts.
    Offered,
    /// Data may flow.
    Established,
    /// Over: the guest is to be told so, and there is no socket any more.
    Ended,
}

/// What came of trying to fill a buffer of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// So many bytes.
    Bytes(u32),
    /// Nothing; what the connection has to say is something else now.
    Nothing,
}

/// One connection.
pub(crate) struct Connection {
    /// Zeroes while nobody has named it.
    pub(crate) ports: Ports,
    pub(crate) phase: Phase,
    /// `None` while the guest waits for one, and in the end.
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) credit: Credit,
    /// There may be something to read; a read knows better.
    pub(crate) readable: bool,
    /// There may be room to write; a write knows better.
    pub(crate) writable: bool,
    /// The program on the host has closed its end. What it wrote before can still be read.
    pub(crate) hung_up: bool,
    /// The guest is to hear REQUEST or RESPONSE.
    pub(crate) owes_opening: bool,
    /// The guest asked for credit.
    pub(crate) owes_credit: bool,
    /// When something happens by itself, as its table knows.
    pub(crate) deadline: Option<Instant>,
    /// It stands in its table's row.
    pub(crate) has_turn: bool,
    /// What the host has not taken yet.
    backlog: Backlog,
    /// The host will send no more.
    host_finished: bool,
    /// The host will take no more.
    host_deaf: bool,
    /// SHUTDOWN_* of the guest's.
    guest_said: u32,
    /// The host has been told that the guest will send no more.
    guest_finished: bool,
    /// SHUTDOWN_* that the guest has been told.
    told: u32,
    /// Credit was asked for, and none has come.
    asked: bool,
}

impl Connection {
    /// A new one, with room for `buf_alloc` bytes that the host does not take at once.
    pub(crate) fn new(phase: Phase, ports: Ports, buf_alloc: u32) -> Self {
        Self {
            ports,
            phase,
            socket: None,
            credit: Credit::new(buf_alloc),
            readable: false,
            writable: true,
            hung_up: false,
            owes_opening: false,
            owes_credit: false,
            deadline: None,
            has_turn: false,
            backlog: Backlog::default(),
            host_finished: false,
            host_deaf: false,
            guest_said: 0,
            guest_finished: false,
            told: 0,
            asked: false,
        }
    }

    /// What the guest is to hear next of this connection. [`Op::Rw`] is worth a try only: the socket may have nothing.
    pub(crate) fn next(&self) -> Option<Op> {
        match self.phase {
            Phase::Greeting | Phase::Asked(_) | Phase::Knocking(_) => None,
            Phase::Ended => Some(Op::Rst),
            Phase::Offered => self.owes_opening.then_some(Op::Request),
            Phase::Established => self.next_of_flow(),
        }
    }

    /// Every packet carries credit, so that a packet for nothing else comes last.
    fn next_of_flow(&self) -> Option<Op> {
        let has_data = self.readable && self.reads();
        let candidates = [
            (Op::Response, self.owes_opening),
            (Op::Rw, has_data && self.credit.free() > 0),
            (Op::Shutdown, self.shutdown() & !self.told != 0),
            // Once, until some has come: a guest that answers with none would be asked for ever.
            (Op::CreditRequest, has_data && self.credit.free() == 0 && !self.asked),
            (Op::CreditUpdate, self.owes_credit || self.credit.is_worth_telling()),
        ];
        candidates.into_iter().find(|(_, wanted)| *wanted).map(|(op, _)| op)
    }

    /// Notes that the guest has been told.
    pub(crate) fn said(&mut self, op: Op) {
        match op {
            Op::Request | Op::Response => self.owes_opening = false,
            Op::Shutdown => self.told |= self.shutdown(),
            Op::CreditRequest => self.asked = true,
            Op::Rw | Op::CreditUpdate | Op::Rst => {}
        }
        self.owes_credit = false;
    }

    /// Whether the guest knows that nothing will come of this connection any more, and is to end it.
    pub(crate) fn is_told_of_the_end(&self) -> bool {
        self.told == SHUTDOWN_BOTH
    }

    /// SHUTDOWN_* of the host's.
    pub(crate) fn shutdown(&self) -> u32 {
        let finished = if self.host_finished { SHUTDOWN_SEND } else { 0 };
        let deaf = if self.host_deaf { SHUTDOWN_RECEIVE } else { 0 };
        // What the host wrote before it went is to be read first.
        let gone = if self.hung_up && !self.reads() { SHUTDOWN_BOTH } else { 0 };
        finished | deaf | gone
    }

    /// The guest wants what the host may still send.
    fn reads(&self) -> bool {
        !self.host_finished && self.guest_said & SHUTDOWN_RECEIVE == 0
    }

    /// Takes what a packet of the guest's says of its room.
    pub(crate) fn hear_credit(&mut self, header: &Header) -> bool {
        let believed = self.credit.hear(header);
        self.asked &= self.credit.free() == 0;
        believed
    }

    /// Tells the program on the host that the guest accepts, from when on data may flow. False if the guest has not been
    /// asked.
    ///
    /// # Errors
    /// The program has gone.
    pub(crate) fn accept(&mut self) -> io::Result<bool> {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.owes_opening) else { return Ok(false) };
        // It is the first on this socket, so that there is room for it.
        rustix::io::write(socket, format!("OK {}\n", self.ports.host).as_bytes())?;
        self.phase = Phase::Established;
        Ok(true)
    }

    /// Reads from the socket into a buffer of the guest's, behind the header.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn fetch(&mut self, to: &Buffers) -> io::Result<Fetched> {
        let Some(socket) = &self.socket else { return Ok(Fetched::Nothing) };
        let len = to.len().saturating_sub(HEADER_LEN).min(self.credit.free() as usize);
        if len == 0 {
            // A read of nothing would look like the end.
            return Ok(Fetched::Nothing);
        }
        match read_vectored(socket, &mut [], &[Part { buffers: to, at: HEADER_LEN, len }]) {
            Ok(0) => {
                self.host_finished = true;
                Ok(Fetched::Nothing)
            }
            Ok(bytes) => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                self.credit.sent(bytes);
                Ok(Fetched::Bytes(bytes))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Fetched::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the guest may send so many bytes more.
    pub(crate) fn may_take(&self, len: usize) -> bool {
        self.guest_said & SHUTDOWN_SEND == 0 && self.backlog.len().saturating_add(len) <= self.credit.room() as usize
    }

    /// Passes on to the host `len` bytes of a packet of the guest's, which [`may_take`](Self::may_take) allows. Returns
    /// how many the host took; the rest is kept.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn deliver(&mut self, packet: &Buffers, len: usize) -> io::Result<usize> {
        let mut taken = 0;
        if let Some(socket) = self.socket.as_ref().filter(|_| self.writable && self.backlog.is_empty()) {
            let part = Part { buffers: packet, at: HEADER_LEN, len };
            let outcome = write_vectored(socket, &[], &[part]);
            taken = self.wrote(outcome, len)?;
        }
        if self.host_deaf {
            // The guest is told; what it sends before it knows goes nowhere.
            self.count_forwarded(len - taken);
        } else {
            self.backlog.append(packet, HEADER_LEN + taken, len - taken);
        }
        Ok(taken)
    }

    /// Writes to the host what it did not take before. Returns how many bytes it was.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn flush(&mut self) -> io::Result<usize> {
        let mut taken = 0;
        if let Some(socket) = self.socket.as_ref().filter(|_| self.writable && !self.backlog.is_empty()) {
            let before = self.backlog.len();
            let outcome = self.backlog.write_to(socket);
            taken = self.wrote(outcome, before)?;
            if self.host_deaf {
                self.count_forwarded(before);
                self.backlog = Backlog::default();
            }
        }
        self.pass_on_shutdown();
        Ok(taken)
    }

    /// Takes what came of writing `wanted` bytes. (Programs in Rust ignore SIGPIPE.)
    fn wrote(&mut self, outcome: io::Result<usize>, wanted: usize) -> io::Result<usize> {
        match outcome {
            Ok(taken) => {
                // A socket that takes a part is full.
                self.writable = taken == wanted;
                self.count_forwarded(taken);
                Ok(taken)
            }
            Err(error) => {
                self.writable = false;
                match error.kind() {
                    ErrorKind::WouldBlock => {}
                    // It may have left something to be read all the same.
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.host_deaf = true,
                    _ => return Err(error),
                }
                Ok(0)
            }
        }
    }

    fn count_forwarded(&mut self, bytes: usize) {
        self.credit.forwarded(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Takes a SHUTDOWN of the guest's; its bits stay set.
    pub(crate) fn hear_shutdown(&mut self, flags: u32) {
        let news = flags & SHUTDOWN_BOTH & !self.guest_said;
        self.guest_said |= news;
        if news & SHUTDOWN_RECEIVE != 0 {
            // The host's program then gets EPIPE, as it would from a peer on the host.
            self.shut_down(Shutdown::Read);
        }
        self.pass_on_shutdown();
    }

    /// Whether the guest wants no more of it: it may still wait for the host to take the rest.
    pub(crate) fn guest_is_done(&self) -> bool {
        self.guest_said == SHUTDOWN_BOTH
    }

    /// Whether the guest wants no more of it, and the host has taken all it will take.
    pub(crate) fn is_done(&self) -> bool {
        self.guest_is_done() && self.backlog.is_empty()
    }

    /// Once: the call makes the socket itself ready anew, for the watcher to tell of.
    fn pass_on_shutdown(&mut self) {
        let has_sent_all = self.guest_said & SHUTDOWN_SEND != 0 && self.backlog.is_empty();
        if has_sent_all && !std::mem::replace(&mut self.guest_finished, true) {
            self.shut_down(Shutdown::Write);
        }
    }

    fn shut_down(&self, half: Shutdown) {
        if let Some(socket) = &self.socket {
            // It fails if the other end has gone, and then does not matter.
            let _ = rustix::net::shutdown(socket, half);
        }
    }

    /// Ends it. The guest is still to be told.
    pub(crate) fn end(&mut self) {
        self.phase = Phase::Ended;
        self.socket = None;
        self.backlog = Backlog::default();
    }
}
