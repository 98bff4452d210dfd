//! A xenstored that breaks the protocol: the client fails the request, connects again, and goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tempfile::TempDir;
use xenstore::{Error, Options, Store};

use crate::{eventually, next, options};

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WATCH: u32 = 4;
const TRANSACTION_START: u32 = 6;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
const DIRECTORY_PART: u32 = 22;

pub(crate) struct Request {
    pub(crate) kind: u32,
    pub(crate) id: u32,
}

pub(crate) fn message(kind: u32, id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [[kind, id, 0, len].map(u32::to_le_bytes).as_flattened(), payload].concat()
}

/// Serves connections one after the other: `answer` gets the number of the connection and the request; `None` closes.
fn serve(answer: impl FnMut(usize, &Request) -> Option<Vec<u8>> + Send + 'static) -> TempDir {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut answer = answer;
    std::thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            serve_one(stream.unwrap(), |request| answer(connection, request));
        }
    });
    dir
}

pub(crate) fn serve_one(mut stream: impl Read + Write, mut answer: impl FnMut(&Request) -> Option<Vec<u8>>) {
    let mut header = [0; 16];
    while stream.read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_le_bytes(*header[at..].first_chunk().unwrap());
        let mut payload = vec![0; word(12) as usize];
        stream.read_exact(&mut payload).unwrap();
        match answer(&Request { kind: word(0), id: word(4) }) {
            Some(bytes) => stream.write_all(&bytes).unwrap(),
            None => return,
        }
    }
}

/// Serves as it should, but answers the second request of the first connection with `bytes`, and a third never.
fn serve_once_badly(bytes: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> TempDir {
    let mut requests = 0;
    serve(move |connection, request| {
        requests += 1;
        Some(match (connection, requests) {
            (0, 2) => bytes(request),
            (0, 3) => Vec::new(),
            _ => message(ERROR, request.id, b"ENOENT\0"),
        })
    })
}

async fn connect(dir: &TempDir, patience: Duration) -> Result<Store, Error> {
    Store::connect(Options { patience, ..options(&dir.path().join("socket")) }).await
}

/// What a client makes of a bad answer to READ; afterwards it must be back.
async fn loss_after(bytes: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> String {
    let dir = serve_once_badly(bytes);
    let store = connect(&dir, Duration::from_secs(20)).await.unwrap();

    let error = store.read("/a").await.unwrap_err();

    eventually(async || store.read("/a").await.is_ok_and(|value| value.is_none())).await;
    let Error::ConnectionLost { reason, .. } = error else { panic!("{error}") };
    reason.to_string()
}

#[tokio::test]
async fn a_giant_length_ends_the_connection() {
    let reason = loss_after(|request| [READ, request.id, 0, u32::MAX].map(u32::to_le_bytes).concat()).await;

    assert!(reason.contains("payload of 4294967295 bytes"), "{reason}");
}

#[tokio::test]
async fn an_unknown_type_ends_the_connection() {
    let reason = loss_after(|request| message(4711, request.id, b"")).await;

    assert!(reason.contains("unknown type 4711"), "{reason}");
}

#[tokio::test]
async fn a_reply_to_nothing_ends_the_connection() {
    let reason = loss_after(|request| message(READ, request.id + 1000, b"x")).await;

    assert!(reason.contains("not in flight"), "{reason}");
}

#[tokio::test]
async fn a_reply_of_another_type_ends_the_connection() {
    let reason = loss_after(|request| message(DIRECTORY, request.id, b"x\0")).await;

    assert!(reason.contains("a reply of type Directory to a request of type Read"), "{reason}");
}

#[tokio::test]
async fn an_event_that_is_not_text_ends_the_connection() {
    let reason = loss_after(|_| message(WATCH_EVENT, 0, b"/\xff\x000\0")).await;

    assert!(reason.contains("Watch event"), "{reason}");
}

#[tokio::test]
async fn half_a_header_and_then_silence_ends_the_connection_after_a_while() {
    let dir = serve_once_badly(|_| vec![2, 0, 0]);
    let store = connect(&dir, Duration::from_millis(300)).await.unwrap();

    let error = store.read("/a").await.unwrap_err();

    assert!(error.to_string().contains("no reply to a request for 300ms"), "{error}");
    eventually(async || store.read("/a").await.is_ok()).await;
}

#[tokio::test]
async fn half_a_header_and_then_the_end_fails_the_request() {
    let mut requests = 0;
    let dir = serve(move |_, request| {
        requests += 1;
        (requests != 2).then(|| message(ERROR, request.id, b"ENOENT\0"))
    });
    let store = connect(&dir, Duration::from_secs(20)).await.unwrap();

    let error = store.read("/a").await.unwrap_err();

    assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    eventually(async || store.read("/a").await.is_ok()).await;
}

#[tokio::test]
async fn a_watch_refused_after_a_restart_is_registered_on_a_later_connection() {
    let mut requests = 0;
    let dir = serve(move |connection, request| {
        requests += 1;
        match (connection, request.kind) {
            (0, _) if requests == 3 => None,
            (1, WATCH) => Some(message(ERROR, request.id, b"ENOSPC\0")),
            (_, WATCH) => Some(message(WATCH, request.id, b"OK\0")),
            _ => Some(message(ERROR, request.id, b"ENOENT\0")),
        }
    });
    let store = connect(&dir, Duration::from_secs(20)).await.unwrap();
    let mut watch = store.watch("/w").await.unwrap();

    store.read("/a").await.unwrap_err();

    assert_eq!(next(&mut watch).await, "/w", "though this server sends no event of its own");
}

#[tokio::test]
async fn an_event_for_an_unknown_watch_is_ignored() {
    let dir = serve(|_, request| {
        Some([message(WATCH_EVENT, 0, b"/a\x00no-number\0"), message(READ, request.id, b"v")].concat())
    });
    let store = connect(&dir, Duration::from_secs(20)).await.unwrap();

    assert_eq!(store.read("/a").await.unwrap(), Some(b"v".to_vec()));
}

#[tokio::test]
async fn what_is_no_xenstored_is_not_taken_for_one() {
    let dir = serve(|_, _| Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));

    let error = connect(&dir, Duration::from_secs(20)).await.unwrap_err();

    assert!(matches!(&error, Error::NotRunning { tried } if tried[0].contains("protocol error")), "{error}");
}

#[tokio::test]
async fn replies_without_sense_fail_the_request_alone() {
    let dir = serve(|_, request| Some(message(request.kind, request.id, b"\xff")));
    let store = connect(&dir, Duration::from_secs(20)).await.unwrap();

    let directory = store.directory("/a").await.unwrap_err();
    let permissions = store.permissions("/a").await.unwrap_err();
    let introduced = store.is_domain_introduced(1).await.unwrap_err();
    let transaction = store.transaction(async |tx| tx.write("/a", "1").await).await.unwrap_err();

    for error in [directory, permissions, introduced, transaction] {
        assert!(matches!(error, Error::BadReply { .. }), "{error}");
    }
    assert_eq!(store.read("/a").await.unwrap(), Some(b"\xff".to_vec()));
}

#[tokio::test]
async fn transaction_zero_is_none() {
    let dir = serve(|_, request| match request.kind {
        TRANSACTION_START => Some(message(TRANSACTION_START, request.id, b"0\0")),
        kind => Some(message(kind, request.id, b"OK\0")),
    });
    let store = connect(&dir, Duration::from_secs(20)).await.unwrap();

    let result = store.transaction(async |tx| tx.write("/a", "1").await).await;

    assert!(matches!(result, Err(Error::BadReply { .. })), "its writes would be outside of any transaction");
}

/// Answers DIRECTORY with E2BIG and the parts with `parts` in turn, the last of them for ever.
async fn directory_from(parts: &'static [&'static [u8]]) -> Result<Option<Vec<String>>, Error> {
    let mut left = parts;
    let dir = serve(move |_, request| {
        Some(match request.kind {
            DIRECTORY => message(ERROR, request.id, b"E2BIG\0"),
            DIRECTORY_PART => {
                let part = left[0];
                left = left.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(left);
                message(DIRECTORY_PART, request.id, part)
            }
            _ => message(ERROR, request.id, b"ENOENT\0"),
        })
    });
    connect(&dir, Duration::from_secs(20)).await.unwrap().directory("/a").await
}

#[tokio::test]
async fn a_directory_that_changes_between_parts_is_read_from_the_start() {
    let names = directory_from(&[b"5\0old\0", b"6\0ignored\0", b"6\0new\0", b"6\0newer\0\0"]).await;

    assert_eq!(names.unwrap().unwrap(), ["new", "newer"]);
}

#[tokio::test]
async fn parts_that_lead_nowhere_end_in_an_error() {
    const BAD: &[&[&[u8]]] = &[&[b"5\0"], &[b"no end"], &[b"5\0more\0"], &[b""]];

    for parts in BAD {
        assert!(matches!(directory_from(parts).await, Err(Error::BadReply { .. })), "{parts:?}");
    }
}
