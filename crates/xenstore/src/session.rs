//! One connection from its opening to its loss: frames, requests in flight, events.
//!
//! Owned by the connection's task ([`crate::connection`]), which waits for it; nothing here waits. Whatever the peer
//! sends that the protocol does not allow is a [`Loss`]: after it nothing on this connection can be trusted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
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

/// A message on its way, whole: xenbus wants each in one write.
struct Outgoing {
    request_id: u32,
    bytes: Vec<u8>,
}

pub(crate) struct Session {
    transport: Transport,
    epoch: u64,
    /// Received and not yet a whole message.
    inbox: Vec<u8>,
    outbox: VecDeque<Outgoing>,
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
        let message = Message { kind, request_id, transaction_id, payload };
        match message.encode(self.transport.message_max()) {
            Ok(bytes) => {
                self.outbox.push_back(Outgoing { request_id, bytes });
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
        // An answer may be what the next request waits for.
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Result<(), Loss> {
        while let Some(Outgoing { request_id, bytes }) = self.outbox.front() {
            let unanswered = self.in_flight.len().saturating_sub(self.outbox.len());
            if unanswered > 0 && self.transport.takes_one_at_a_time() {
                return Ok(());
            }
            let rest = bytes.get(self.written..).unwrap_or_default();
            match self.transport.try_write(rest) {
                Ok(Some(written)) if self.written + written < bytes.len() => {
                    self.written += written;
                    continue;
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) if self.transport.refuses_by_failing() => {
                    let request_id = *request_id;
                    self.refuse(request_id, code_of(&error))?;
                }
                Err(error) => return Err(error.into()),
            }
            self.outbox.pop_front();
            self.written = 0;
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
        self.answered = true;
        match answer {
            Ok(reply) => match self.waiter(request_id) {
                Waiter::Caller(caller) => drop(caller.send(Ok(reply))),
                Waiter::Rewatch(queue) => queue.push_everything(),
                Waiter::Nobody => {}
            },
            Err(code) => self.refuse(request_id, code)?,
        }
        Ok(())
    }

    fn refuse(&mut self, request_id: u32, code: ErrorCode) -> Result<(), Loss> {
        match self.waiter(request_id) {
            // A watch that is not registered loses events: start again, later.
            Waiter::Rewatch(queue) => return Err(Loss::Rewatch { path: queue.path().to_owned(), code }),
            waiter => waiter.fail(Failure::Refused(code)),
        }
        Ok(())
    }

    /// Who waits for the reply to a request, which is in flight no longer.
    fn waiter(&mut self, request_id: u32) -> Waiter {
        self.in_flight.remove(&request_id).map_or(Waiter::Nobody, |request| request.waiter)
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

/// The kernel passes on as its own what xenstored says of a watch.
fn code_of(error: &io::Error) -> ErrorCode {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => ErrorCode::NotFound,
        Some(Errno::TOOBIG) => ErrorCode::TooBig,
        Some(Errno::ACCESS) => ErrorCode::NoPermission,
        Some(Errno::INVAL) => ErrorCode::Invalid,
        _ => ErrorCode::Other(error.to_string()),
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

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_message_that_the_kernel_does_not_take_is_refused_and_the_connection_goes_on() {
        let (here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        // Writes fail, as they do when xenstored refuses a watch; reads do not.
        here.shutdown(Shutdown::Write).unwrap();
        let watches = Watches::new();
        let mut session = Session::new(Transport::over_xenbus(here.into()).unwrap(), 0, &watches);
        let (caller, mut answer) = oneshot::channel();

        session.ask(MessageType::Watch, 0, b"a\0t\0".to_vec(), Waiter::Caller(caller));
        session.flush().unwrap();
        let event =
            Message { kind: MessageType::WatchEvent, request_id: 0, transaction_id: 0, payload: b"a\0t\0".to_vec() };
        io::Write::write_all(&mut there, &event.encode(4096).unwrap()).unwrap();
        session.ready().await.unwrap();
        session.pump(&watches).unwrap();

        assert!(matches!(answer.try_recv(), Ok(Err(Failure::Refused(ErrorCode::Other(_))))));
    }

    #[tokio::test]
    async fn the_kernel_gets_a_request_when_it_has_answered_the_one_before() {
        let (here, mut there) = UnixStream::pair().unwrap();
        for side in [&here, &there] {
            side.set_nonblocking(true).unwrap();
        }
        let watches = Watches::new();
        let mut session = Session::new(Transport::over_xenbus(here.into()).unwrap(), 0, &watches);
        let mut answers = ["a\0", "b\0"].map(|path| {
            let (caller, answer) = oneshot::channel();
            session.ask(MessageType::Read, 0, path.into(), Waiter::Caller(caller));
            session.flush().unwrap();
            answer
        });

        for (path, answer) in ["a\0", "b\0"].iter().zip(&mut answers) {
            let mut bytes = [0; 4096];
            let len = io::Read::read(&mut there, &mut bytes).unwrap();
            let (request, request_len) = Message::parse(&bytes[..len]).unwrap().unwrap();
            assert_eq!((request.payload.as_slice(), request_len), (path.as_bytes(), len), "one request and no more");
            io::Write::write_all(&mut there, &request.encode(4096).unwrap()).unwrap();
            session.ready().await.unwrap();
            session.pump(&watches).unwrap();
            assert!(matches!(answer.try_recv(), Ok(Ok(reply)) if reply.payload == path.as_bytes()));
        }
    }

    #[tokio::test]
    async fn a_watch_that_the_kernel_does_not_take_again_ends_the_connection() {
        let (here, _there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        here.shutdown(Shutdown::Write).unwrap();
        let watches = Watches::from([(1, Arc::new(Queue::of("backend/virtio_disk")))]);
        let mut session = Session::new(Transport::over_xenbus(here.into()).unwrap(), 1, &watches);

        assert!(matches!(session.flush(), Err(Loss::Rewatch { path, .. }) if path == "backend/virtio_disk"));
    }

    #[test]
    fn what_xenstored_says_of_a_watch_is_heard_through_the_kernel() {
        let code = |errno: Errno| code_of(&errno.into());
        assert_eq!(code(Errno::ACCESS), ErrorCode::NoPermission);
        assert_eq!(code(Errno::TOOBIG), ErrorCode::TooBig);
        assert_eq!(code(Errno::NOENT), ErrorCode::NotFound);
        assert_eq!(code(Errno::INVAL), ErrorCode::Invalid);
        assert!(matches!(code(Errno::NOMEM), ErrorCode::Other(words) if words.contains("memory")));
    }
}
