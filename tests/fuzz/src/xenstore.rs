//! A xenstored that says anything: right answers, answers to other questions, events, and bytes of any sort, to a client
//! that asks for one thing after the other.
//!
//! - Each request comes to an end, by its answer or by an error.
//! - A value is what the reply to that request had in it. An event's path is one that was said.
//! - What is read by the parsers of the wire is written as it was.

use std::cell::Cell;
use std::convert::Infallible;
use std::os::unix::net::UnixListener as Listener;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use xenstore::wire::{HEADER_LEN, Message, MessageType, PAYLOAD_MAX, parse_event, parse_string, parse_strings};
use xenstore::{Address, ErrorCode, Options, Store};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Requests of a run.
const MOST: usize = 30;

/// What the client asks for, and what is said to it before and in answer.
#[derive(Arbitrary, Debug)]
struct Exchange {
    asks: Ask,
    before: Vec<Noise>,
    answer: Answer,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Ask {
    Read,
    Directory,
    Permissions,
    Write,
    Watch,
    DomainPath(u16),
    IsIntroduced(u16),
}

/// What nobody asked for, and the protocol allows.
#[derive(Arbitrary, Debug)]
struct Noise {
    path: Vec<u8>,
    token: Token,
}

#[derive(Arbitrary, Debug)]
enum Token {
    OfWatch(u8),
    Any(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Answer {
    /// A reply of the right type.
    Reply(Vec<u8>),
    Refusal(Vec<u8>),
    /// A header of any sort, with this payload behind it.
    Header {
        kind: u8,
        id: Option<u32>,
        transaction: u32,
        len: Option<u32>,
        payload: Vec<u8>,
    },
    Bytes(Vec<u8>),
    /// A reply in pieces.
    Piecemeal(Vec<u8>, u8),
    Leaves,
}

/// Plays a xenstored.
///
/// # Panics
/// The client has made something else of it.
pub fn run(bytes: &[u8]) {
    parse(bytes);
    let mut source = Unstructured::new(bytes);
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let socket = folder.path().join("socket");
    let listener = Listener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener).unwrap();
        let options = Options { addresses: vec![Address::Socket(socket)], ..Options::default() };
        let (store, mut stream) = tokio::join!(Store::connect(options), accept(&listener));
        let store = store.expect("a xenstored that answers is one");
        let mut exchanges = 0;
        while !source.is_empty() && exchanges < MOST {
            let Ok(exchange) = Exchange::arbitrary(&mut source) else { break };
            exchanges += 1;
            // When a connection has been lost, the next one would come after a pause, which is of no interest.
            if !exchange.make(&store, &mut stream).await {
                break;
            }
        }
    });
}

/// The parsers alone.
fn parse(bytes: &[u8]) {
    if let Ok(Some((message, len))) = Message::parse(bytes) {
        assert_eq!(message.encode(HEADER_LEN + PAYLOAD_MAX).unwrap(), &bytes[..len]);
    }
    if let Ok((path, token)) = parse_event(bytes) {
        assert!(bytes.starts_with(format!("{path}\0{token}\0").as_bytes()) && !path.is_empty());
    }
    if let Some(strings) = parse_strings(bytes) {
        assert_eq!(strings.iter().map(|text| format!("{text}\0")).collect::<String>().as_bytes(), bytes);
    }
    assert!(parse_string(bytes).is_none_or(|text| text.len() <= bytes.len()));
    assert!(ErrorCode::parse(bytes).to_string().len() <= 32);
}

/// What came of a request, in one shape for all.
#[derive(Debug)]
enum Outcome {
    Bytes(Vec<u8>),
    Done,
    Refused,
    /// The connection is lost, or the answer makes no sense.
    Failed,
}

fn outcome<T>(result: Result<T, xenstore::Error>, shown: impl FnOnce(T) -> Outcome) -> Outcome {
    match result {
        Ok(value) => shown(value),
        Err(error) if error.code().is_some() => Outcome::Refused,
        Err(_) => Outcome::Failed,
    }
}

fn lines(strings: &[String]) -> Vec<u8> {
    strings.iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect()
}

impl Ask {
    async fn ask(self, store: &Store) -> Outcome {
        let found = |bytes: Option<Vec<u8>>| bytes.map_or(Outcome::Refused, Outcome::Bytes);
        match self {
            Self::Read => outcome(store.read("a").await, found),
            Self::Directory => outcome(store.directory("a").await, |names| found(names.map(|names| lines(&names)))),
            Self::Permissions => outcome(store.permissions("a").await, |_| Outcome::Done),
            Self::Write => outcome(store.write("a", "b").await, |()| Outcome::Done),
            Self::Watch => outcome(store.watch("a").await, |_| Outcome::Done),
            Self::DomainPath(domid) => {
                outcome(store.domain_path(domid).await, |path| Outcome::Bytes(path.into_bytes()))
            }
            Self::IsIntroduced(domid) => outcome(store.is_domain_introduced(domid).await, |_| Outcome::Done),
        }
    }
}

impl Exchange {
    /// False if the connection is not to be used any more.
    async fn make(&self, store: &Store, stream: &mut UnixStream) -> bool {
        // What comes behind half a message, or behind one that was not asked for, is nobody's to foresee.
        let is_open = Cell::new(self.answer.is_whole());
        let outcome = tokio::select! {
            outcome = timeout(PATIENCE, self.asks.ask(store)) => outcome.expect("a request comes to an end"),
            never = self.serve(stream, &is_open) => match never {},
        };
        match (&self.answer, &outcome) {
            (Answer::Reply(payload) | Answer::Piecemeal(payload, _), Outcome::Bytes(bytes)) => {
                let payload = &payload[..payload.len().min(PAYLOAD_MAX)];
                let trimmed = payload.strip_suffix(b"\0").unwrap_or(payload);
                assert!(bytes == payload || bytes == trimmed, "{bytes:?} of {payload:?}");
            }
            (Answer::Refusal(_), Outcome::Bytes(_) | Outcome::Done) => {
                let is_odd = self.before.iter().any(|noise| !noise.is_event());
                assert!(is_odd, "a refusal is taken for an answer: {outcome:?}");
            }
            _ => {}
        }
        is_open.get() && !matches!(outcome, Outcome::Failed)
    }

    /// Answers the request, and refuses what the client may ask because of that.
    async fn serve(&self, stream: &mut UnixStream, is_open: &Cell<bool>) -> Infallible {
        is_open.set(self.answer(stream).await);
        while let Some(request) = next_request(stream).await {
            let refusal = message(MessageType::Error, request.request_id, b"ENOENT\0");
            is_open.set(is_open.get() && stream.write_all(&refusal).await.is_ok());
        }
        is_open.set(false);
        std::future::pending().await
    }

    /// Reads the request and answers it.
    async fn answer(&self, stream: &mut UnixStream) -> bool {
        let Some(request) = next_request(stream).await else { return false };
        let mut bytes = Vec::new();
        for noise in &self.before {
            bytes.extend(message(MessageType::WatchEvent, 0, &noise.payload()));
        }
        match &self.answer {
            Answer::Reply(payload) | Answer::Piecemeal(payload, _) => {
                bytes.extend(message(request.kind, request.request_id, payload));
            }
            Answer::Refusal(name) => bytes.extend(message(MessageType::Error, request.request_id, name)),
            Answer::Header { kind, id, transaction, len, payload } => {
                let len = len.unwrap_or(payload.len() as u32);
                let words = [u32::from(*kind % 26), id.unwrap_or(request.request_id), *transaction, len];
                words.into_iter().for_each(|word| bytes.extend(word.to_le_bytes()));
                bytes.extend(payload);
            }
            Answer::Bytes(more) => bytes.extend(more),
            Answer::Leaves => {}
        }
        let piece = match self.answer {
            Answer::Piecemeal(_, piece) => usize::from(piece).max(1),
            _ => bytes.len().max(1),
        };
        for piece in bytes.chunks(piece) {
            // A client that has had enough has gone.
            if stream.write_all(piece).await.is_err() {
                return false;
            }
            tokio::task::yield_now().await;
        }
        if !self.answer.is_whole() {
            // Nothing more comes: who waits for the rest of a message waits for the end.
            let _ = stream.shutdown().await;
        }
        self.answer.is_whole()
    }
}

impl Answer {
    /// Whether the connection can go on after it.
    fn is_whole(&self) -> bool {
        matches!(self, Self::Reply(_) | Self::Piecemeal(..) | Self::Refusal(_))
    }
}

impl Noise {
    fn payload(&self) -> Vec<u8> {
        let token = match &self.token {
            Token::OfWatch(token) => (token % 4).to_string().into_bytes(),
            Token::Any(token) => token.clone(),
        };
        let mut payload = [&self.path[..], b"\0", &token, b"\0"].concat();
        payload.truncate(PAYLOAD_MAX);
        payload
    }

    fn is_event(&self) -> bool {
        parse_event(&self.payload()).is_ok()
    }
}

/// A message of the protocol; what is too long is cut.
fn message(kind: MessageType, request_id: u32, payload: &[u8]) -> Vec<u8> {
    let payload = payload[..payload.len().min(PAYLOAD_MAX)].to_vec();
    Message { kind, request_id, transaction_id: 0, payload }.encode(HEADER_LEN + PAYLOAD_MAX).unwrap()
}

/// A client connects, and asks something to see who is there.
async fn accept(listener: &UnixListener) -> UnixStream {
    let mut stream = listener.accept().await.unwrap().0;
    let request = next_request(&mut stream).await.expect("a first request");
    stream.write_all(&message(MessageType::Error, request.request_id, b"ENOENT\0")).await.unwrap();
    stream
}

/// The next request, or none if the client has gone; what tells that a watch is not wanted any more is answered.
async fn next_request(stream: &mut UnixStream) -> Option<Message> {
    loop {
        let mut bytes = vec![0; HEADER_LEN];
        stream.read_exact(&mut bytes).await.ok()?;
        let len = u32::from_le_bytes(bytes[12..].try_into().ok()?) as usize;
        bytes.resize(HEADER_LEN + len, 0);
        stream.read_exact(&mut bytes[HEADER_LEN..]).await.ok()?;
        let (request, _) = Message::parse(&bytes).expect("a client says what it can").expect("all of it");
        if request.kind != MessageType::Unwatch {
            return Some(request);
        }
        stream.write_all(&message(MessageType::Unwatch, request.request_id, b"OK\0")).await.ok()?;
    }
}
