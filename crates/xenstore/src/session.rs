//! One connection from its opening to its loss: frames, requests in flight, events.
//!
//! Owned by the connection's task ([`crate::connection`]), which waits for it; nothing here waits. Whatever the peer
//! sends that the protocol does not allow is a [`Loss`]: after it nothing on this connection can be trusted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::transport::Transport;
use crate::watch::Queue;
use crate::wire::{self, ErrorCode, Message, MessageType, WireError};

/// The watches of the client by their token, which is theirs for good.
pub(crate) type Watches = BTreeMap<u64, Arc<Queue>>;

/// The result of one request.
pub(crate) type Answer = Result<Reply, Failure>;

/// A reply that is not an error.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    /// The connection it came over: transaction ids mean nothing on the next one.
    pub(crate) epoch: u64,
}

/// Why a request has no reply.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(ErrorCode),
    BadRequest(WireError),
    Lost { reason: Arc<str> },
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    #[error("it was closed by the other side")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
    #[error("protocol error: {0}")]
    Wire(#[from] WireError),
    #[error("protocol error: a reply to request {0}, which is not in flight")]
    UnknownReply(u32),
    #[error("protocol error: a reply of type {got} to a request of type {asked}")]
    WrongReply { asked: MessageType, got: MessageType },
    #[error("no reply to a request for {0:?}")]
    Silent(Duration),
    #[error("the watch on {path:?} could not be registered again: {code}")]
    Rewatch { path: String, code: ErrorCode },
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        // Whether a read or a write is first to meet the end is chance.
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Who waits for a reply.
pub(crate) enum Waiter {
    Caller(oneshot::Sender<Answer>),
    /// A watch that is being registered again on a new connection.
    Rewatch(Arc<Queue>),
    Nobody,
}

impl Waiter {
    fn fail(self, failure: Failure) {
        if let Self::Caller(caller) = self {
            // A caller that was cancelled does not mind.
            let _ = caller.send(Err(failure));
        }
    }
}

struct InFlight {
    kind: MessageType,
    since: Instant,
    waiter: Waiter,
}

pub(crate) struct Session {
    transport: Transport,
    epoch: u64,
    /// Received and not yet a whole message.
    inbox: Vec<u8>,
    /// Whole messages: xenbus wants each in one write.
    outbox: VecDeque<Vec<u8>>,
    /// Bytes of the outbox's first message that are written.
    written: usize,
    in_flight: BTreeMap<u32, InFlight>,
    last_id: u32,
    answered: bool,
}

impl Session {
    /// Starts to use `transport`; all of `watches` are registered anew.
    pub(crate) fn new(transport: Transport, epoch: u64, watches: &Watches) -> Self {
        let mut session = Self {
            transport,
            epoch,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            written: 0,
            in_flight: BTreeMap::new(),
            last_id: 0,
            answered: false,
        };
        for (token, queue) in watches {
            session.ask_watch(MessageType::Watch, *token, queue, Waiter::Rewatch(Arc::clone(queue)));
        }
        session
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A valid reply has come over this connection: what answers is a xenstored.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered
    }

    /// Waits until [`Session::pump`] has something to do. Cancel safe.
    pub(crate) async fn ready(&self) -> Result<(), Loss> {
        Ok(self.transport.ready(!self.outbox.is_empty()).await?)
    }

    /// Waits until a request has been in flight for longer than `patience`. Cancel safe.
    pub(crate) async fn overdue(&self, patience: Duration) -> Loss {
        match self.in_flight.values().map(|request| request.since).min() {
            Some(oldest) => tokio::time::sleep_until(oldest + patience).await,
            None => std::future::pending().await,
        }
        Loss::Silent(patience)
    }

    /// Queues a request; its answer goes to `waiter`.
    pub(crate) fn ask(&mut self, kind: MessageType, transaction_id: u32, payload: Vec<u8>, waiter: Waiter) {
        let request_id = self.free_id();
        match (Message { kind, request_id, transaction_id, payload }).encode() {
            Ok(bytes) => {
                self.outbox.push_back(bytes);
                self.in_flight.insert(request_id, InFlight { kind, since: Instant::now(), waiter });
            }
            Err(error) => waiter.fail(Failure::BadRequest(error)),
        }
    }

    /// Queues WATCH or UNWATCH.
    pub(crate) fn ask_watch(&mut self, kind: MessageType, token: u64, queue: &Queue, waiter: Waiter) {
        match wire::path_payload(queue.path(), format!("{token}\0").as_bytes()) {
            Ok(payload) => self.ask(kind, 0, payload, waiter),
            Err(error) => waiter.fail(Failure::BadRequest(error)),
        }
    }

    /// Writes what can be written, reads a chunk, and deals with the messages that are complete.
    pub(crate) fn pump(&mut self, watches: &Watches) -> Result<(), Loss> {
        self.flush()?;
        if self.transport.try_read(&mut self.inbox)? == Some(0) {
            return Err(Loss::Closed);
        }
        while let Some((message, len)) = Message::parse(&self.inbox)? {
            self.inbox.drain(..len);
            match message.kind {
                MessageType::WatchEvent => deliver(&message.payload, watches)?,
                _ => self.settle(message)?,
            }
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), Loss> {
        while let Some(message) = self.outbox.front() {
            let rest = message.get(self.written..).unwrap_or_default();
            let Some(written) = self.transport.try_write(rest)? else {
                return Ok(());
            };
            self.written += written;
            if self.written >= message.len() {
                self.outbox.pop_front();
                self.written = 0;
            }
        }
        Ok(())
    }

    /// Ends the connection: those who wait for an answer learn why they get none.
    pub(crate) fn abandon(self, reason: &Arc<str>) {
        for request in self.in_flight.into_values() {
            request.waiter.fail(Failure::Lost { reason: Arc::clone(reason) });
        }
    }

    fn settle(&mut self, message: Message) -> Result<(), Loss> {
        let Message { kind: got, request_id, payload, .. } = message;
        let asked = self.in_flight.get(&request_id).ok_or(Loss::UnknownReply(request_id))?.kind;
        let answer = match got {
            MessageType::Error => Err(ErrorCode::parse(&payload)),
            _ if got == asked => Ok(Reply { payload, epoch: self.epoch }),
            _ => return Err(Loss::WrongReply { asked, got }),
        };
        let waiter = self.in_flight.remove(&request_id).map_or(Waiter::Nobody, |request| request.waiter);
        self.answered = true;
        match (waiter, answer) {
            (Waiter::Caller(caller), Ok(reply)) => drop(caller.send(Ok(reply))),
            (waiter @ Waiter::Caller(_), Err(code)) => waiter.fail(Failure::Refused(code)),
            (Waiter::Rewatch(queue), Ok(_)) => queue.push_everything(),
            // A watch that is not registered loses events: start again, later.
            (Waiter::Rewatch(queue), Err(code)) => return Err(Loss::Rewatch { path: queue.path().to_owned(), code }),
            (Waiter::Nobody, _) => {}
        }
        Ok(())
    }

    /// An id that no request in flight has; never 0, which is that of events.
    fn free_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.in_flight.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// Hands an event to its watch; an unknown token is that of a watch dropped a moment ago.
fn deliver(payload: &[u8], watches: &Watches) -> Result<(), Loss> {
    let (path, token) = wire::parse_event(payload)?;
    if let Some(queue) = token.parse().ok().and_then(|token: u64| watches.get(&token)) {
        queue.push(path);
    }
    Ok(())
}
