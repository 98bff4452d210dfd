//! A server that answers wrongly: its connection is given up, the request goes to the next one, and no byte outside the
//! request's memory changes.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use testkit::cases;

use crate::disk::{buffer, config, eventually, offer, rig, wait_used};
use crate::harness::{DATA, IOERR, OK, SECTOR, UNTOUCHED, kind, pattern};
use crate::played::{Export, Played, READ, Request, Session, chunk_bytes, simple_bytes};
use virtio_disk::Config;

type Act = dyn Fn(&mut Session, &Request) + Send + Sync;

/// Has the first connection answer the first request by `act`; all others it is honest about. Reads eight sectors from
/// sector 16.
fn read_with(structured: bool, act: &Arc<Act>) -> (u8, bool, Vec<u8>) {
    let act = Arc::clone(act);
    let server = Played::new(
        move |_| Export { structured, ..Export::default() },
        move |mut session, number| {
            if number == 0 {
                let Some(request) = session.request() else { return };
                act(&mut session, &request);
            }
            session.serve();
        },
    );
    let rig = rig(&config(&server.image()));
    // All around is to stay as it is.
    rig.memory.write(DATA - 4096, &[0x5a; 4096]);
    rig.memory.write(DATA + 4096, &[0x5a; 65536]);
    let outcome = rig.read(16, 8);
    assert_eq!(rig.bytes(DATA - 4096, 4096), [0x5a; 4096]);
    assert_eq!(rig.bytes(DATA + 4096, 65536), [0x5a; 65536]);
    assert_eq!(rig.hearing.fault(), None);
    (outcome.status, rig.counter("nbd_losses") > 0, outcome.data)
}

fn right() -> Vec<u8> {
    pattern(1 << 20, 7)[16 * SECTOR..24 * SECTOR].to_vec()
}

fn at(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], data].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

fn error(code: u32, message_length: u16, rest: usize) -> Vec<u8> {
    [&code.to_be_bytes()[..], &message_length.to_be_bytes(), &vec![b'x'; rest]].concat()
}

const DONE: u16 = 1;
const START: u64 = 16 * SECTOR as u64;

#[test]
fn e07_lies_of_a_server_cost_the_connection_and_not_the_request() {
    let wrong = vec![0xee; 4096];
    let lies: Vec<(&str, bool, Arc<Act>)> = vec![
        ("no magic", false, Arc::new(|server, _| server.send(&[0xff; 64]))),
        (
            "a chunk that was not agreed on",
            false,
            Arc::new(|server, request| server.chunk(DONE, 0, request.cookie, &[])),
        ),
        ("another cookie", false, Arc::new(|server, request| server.simple(request.cookie + 1, 0, &[1; 4096]))),
        (
            "a cookie of another time",
            false,
            Arc::new(|server, request| server.simple(request.cookie ^ 1 << 40, 0, &[1; 4096])),
        ),
        ("a cookie beyond all", false, Arc::new(|server, _| server.simple(u64::MAX, 0, &[1; 4096]))),
        (
            "a read answered in the way given up",
            true,
            Arc::new(|server, request| server.simple(request.cookie, 0, &[1; 4096])),
        ),
        (
            "data before the start",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1, request.cookie, &at(START - 1, &[1; 4096]))),
        ),
        (
            "data beyond the end",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1, request.cookie, &at(START + 1, &[1; 4096]))),
        ),
        (
            "data at the end of numbers",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1, request.cookie, &at(u64::MAX - 8, &[1; 4096]))),
        ),
        (
            "more data than asked for",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1, request.cookie, &at(START, &[1; 8192]))),
        ),
        ("no data", true, Arc::new(|server, request| server.chunk(DONE, 1, request.cookie, &at(START, &[])))),
        (
            "a chunk too short for its offset",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1, request.cookie, &[0; 7])),
        ),
        (
            "an immense chunk",
            true,
            Arc::new(|server, request| server.chunk_of(DONE, 1, request.cookie, u32::MAX, &at(START, &[1; 4096]))),
        ),
        (
            "a hole beyond the end",
            true,
            Arc::new(|server, request| server.chunk(DONE, 2, request.cookie, &hole(START, 4097))),
        ),
        ("an empty hole", true, Arc::new(|server, request| server.chunk(DONE, 2, request.cookie, &hole(START, 0)))),
        (
            "a hole with something in it",
            true,
            Arc::new(|server, request| server.chunk(DONE, 2, request.cookie, &[0; 16])),
        ),
        (
            "a chunk of an unknown kind",
            true,
            Arc::new(|server, request| server.chunk(DONE, 77, request.cookie, &[0; 16])),
        ),
        ("an end that is no end", true, Arc::new(|server, request| server.chunk(0, 0, request.cookie, &[]))),
        ("an end with something in it", true, Arc::new(|server, request| server.chunk(DONE, 0, request.cookie, &[0]))),
        ("an end before the data", true, Arc::new(|server, request| server.chunk(DONE, 0, request.cookie, &[]))),
        (
            "an error that is none",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1 << 15 | 1, request.cookie, &error(0, 0, 0))),
        ),
        (
            "an error too short",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1 << 15 | 1, request.cookie, &[0; 5])),
        ),
        (
            "an error of immense length",
            true,
            Arc::new(|server, request| server.chunk_of(DONE, 1 << 15 | 1, request.cookie, u32::MAX, &[1; 64])),
        ),
        (
            "an error whose message is longer than it",
            true,
            Arc::new(|server, request| server.chunk(DONE, 1 << 15 | 1, request.cookie, &error(5, 9, 8))),
        ),
        (
            "errors without end",
            true,
            Arc::new(|server, request| {
                for _ in 0..1000 {
                    server.chunk(0, 1 << 15 | 1, request.cookie, &error(5, 0, 0));
                }
            }),
        ),
        (
            "the same data twice",
            true,
            Arc::new(|server, request| {
                server.chunk(0, 1, request.cookie, &at(START, &[1; 4096]));
                server.chunk(DONE, 1, request.cookie, &at(START + 4095, &[1; 1]));
            }),
        ),
        (
            "a hole where data were",
            true,
            Arc::new(|server, request| {
                server.chunk(0, 1, request.cookie, &at(START, &[1; 4096]));
                server.chunk(DONE, 2, request.cookie, &hole(START, 1));
            }),
        ),
        (
            "a gap",
            true,
            Arc::new(|server, request| {
                server.chunk(0, 1, request.cookie, &at(START, &[1; 1024]));
                server.chunk(DONE, 1, request.cookie, &at(START + 2048, &[1; 2048]));
            }),
        ),
        (
            "single bytes, every other one",
            true,
            Arc::new(|server, request| {
                for byte in (0..4096).step_by(2) {
                    server.chunk(0, 1, request.cookie, &at(START + byte, &[1]));
                }
            }),
        ),
        (
            "both ways at a time",
            true,
            Arc::new(|server, request| {
                server.chunk(0, 1, request.cookie, &at(START, &[1; 1024]));
                server.simple(request.cookie, 5, &[]);
            }),
        ),
        (
            "both ways at a time, about an error",
            true,
            Arc::new(|server, request| {
                server.chunk(0, 1 << 15 | 1, request.cookie, &error(5, 0, 0));
                server.simple(request.cookie, 5, &[]);
            }),
        ),
        (
            "the end in the middle of a header",
            true,
            Arc::new(move |server, _| {
                server.send(&0x668e33efu32.to_be_bytes());
                let _ = server.stream.shutdown(std::net::Shutdown::Both);
            }),
        ),
        (
            "the end in the middle of data",
            true,
            Arc::new(move |server, request| {
                server.chunk_of(DONE, 1, request.cookie, 4096 + 8, &at(START, &wrong[..2000]));
                let _ = server.stream.shutdown(std::net::Shutdown::Both);
            }),
        ),
        ("that it is shutting down", true, Arc::new(|server, request| server.simple(request.cookie, 108, &[]))),
    ];
    cases::count(lies.len() as u64);
    for (lie, structured, act) in lies {
        let (status, lost, data) = read_with(structured, &act);
        assert_eq!((status, lost), (OK, true), "{lie}");
        assert_eq!(data, right(), "{lie}");
    }
}

#[test]
fn what_is_unusual_and_right_is_taken() {
    let right_data = right();
    let (first, second) = (right_data.clone(), right_data.clone());
    let truths: Vec<(&str, bool, Arc<Act>)> = vec![
        (
            "pieces from the end to the start",
            true,
            Arc::new(move |server, request| {
                for piece in (0..8).rev() {
                    let place = piece * SECTOR;
                    server.chunk(0, 1, request.cookie, &at(START + place as u64, &first[place..place + SECTOR]));
                }
                server.chunk(DONE, 0, request.cookie, &[]);
            }),
        ),
        (
            "byte by byte",
            false,
            Arc::new(move |server, request| {
                let mut reply = [0x67446698u32, 0].map(u32::to_be_bytes).concat();
                reply.extend(request.cookie.to_be_bytes());
                reply.extend(&second);
                for byte in reply {
                    server.stream.write_all(&[byte]).unwrap();
                }
            }),
        ),
    ];
    for (truth, structured, act) in truths {
        assert_eq!(read_with(structured, &act), (OK, false, right()), "{truth}");
    }
}

#[test]
fn an_answer_may_come_in_two_pieces_that_end_anywhere() {
    type Bytes = fn(u64) -> Vec<u8>;
    fn chunk(cookie: u64, kind: u16, data: &[u8]) -> Vec<u8> {
        chunk_bytes(DONE, kind, cookie, data.len() as u32, data)
    }
    let answers: [(bool, Bytes, (u8, Vec<u8>)); 4] = [
        (false, |cookie| simple_bytes(cookie, 0, &right()), (OK, right())),
        (true, |cookie| chunk(cookie, 1, &at(START, &right())), (OK, right())),
        (true, |cookie| chunk(cookie, 2, &hole(START, 4096)), (OK, vec![0; 4096])),
        (true, |cookie| chunk(cookie, 1 << 15 | 1, &error(5, 8, 8)), (IOERR, Vec::new())),
    ];
    for (structured, bytes, expected) in answers {
        for cut in [2, 6, 18, 22, 28, 32] {
            let act: Arc<Act> = Arc::new(move |server, request| {
                let bytes = bytes(request.cookie);
                let (first, second) = bytes.split_at(cut.min(bytes.len()));
                server.send(first);
                // Long enough for the device to have taken it.
                std::thread::sleep(Duration::from_millis(20));
                server.send(second);
            });
            let (status, lost, data) = read_with(structured, &act);
            assert_eq!((status, lost), (expected.0, false), "cut at {cut}");
            assert!(status != OK || data == expected.1, "cut at {cut}");
        }
    }
}

#[test]
fn a_write_may_be_answered_in_an_empty_chunk_and_by_nothing_that_a_read_is() {
    let answers = [(0, Vec::new(), 0), (1, at(START, &[1; SECTOR]), 1), (2, hole(START, SECTOR as u32), 1)];
    for (kind, data, losses) in answers {
        let server = Played::new(
            |_| Export::default(),
            move |mut session, number| {
                if number == 0 {
                    let Some(request) = session.request() else { return };
                    session.chunk(DONE, kind, request.cookie, &data);
                }
                session.serve();
            },
        );
        let rig = rig(&config(&server.image()));
        assert_eq!(rig.write(16, &[9; SECTOR]), OK);
        assert_eq!(rig.counter("nbd_losses"), losses, "{kind}");
    }
}

#[test]
fn a_hole_reads_as_zeroes() {
    let act: Arc<Act> = Arc::new(|server, request| {
        server.chunk(0, 2, request.cookie, &hole(START, 2048));
        server.chunk(DONE, 1, request.cookie, &at(START + 2048, &[7; 2048]));
    });
    let (status, lost, data) = read_with(true, &act);
    assert_eq!((status, lost), (OK, false));
    assert_eq!(data, [[0; 2048], [7; 2048]].concat());
}

#[test]
fn e07_errors_of_a_server_are_of_the_request_whatever_their_number() {
    let codes = (1..40).chain([75, 95, 109, 999, 1 << 31, u32::MAX]);
    cases::each(codes, |code| {
        let simple: Arc<Act> = Arc::new(move |server, request| server.simple(request.cookie, code, &[]));
        let chunk: Arc<Act> =
            Arc::new(move |server, request| server.chunk(DONE, 1 << 15 | 1, request.cookie, &error(code, 8, 8)));
        let late: Arc<Act> = Arc::new(move |server, request| {
            server.chunk(0, 1, request.cookie, &at(START, &[1; 1024]));
            server.chunk(0, 1 << 15 | 2, request.cookie, &error(code, 0, 8));
            server.chunk(DONE, 0, request.cookie, &[]);
        });
        for (structured, act) in [(false, &simple), (true, &simple), (true, &chunk), (true, &late)] {
            let (status, lost, _) = read_with(structured, act);
            assert_eq!((status, lost), (IOERR, false), "{code}");
        }
    });
}

#[test]
fn an_answer_that_comes_twice_ends_the_connection_when_it_comes_again() {
    let server = Played::new(
        |_| Export::default(),
        |mut session, number| {
            while let Some(request) = session.request() {
                session.answer(&request);
                if number == 0 && request.kind == READ {
                    session.answer(&request);
                }
            }
        },
    );
    let rig = rig(&config(&server.image()));
    assert_eq!(rig.read(16, 8).data, right());
    eventually("the connection is given up", || rig.counter("nbd_losses") == 1);
    assert_eq!(rig.read(16, 8).data, right());
}

#[test]
fn a_write_that_is_answered_before_it_was_sent_is_not_believed() {
    // It answers as soon as it has seen the header; more than a socket's buffer is still to come.
    let server = Played::new(
        |_| Export { size: 8 << 20, ..Export::default() },
        |mut session, number| {
            if number == 0 {
                let header = crate::played::take::<28>(&mut session.stream).unwrap();
                session.simple(u64::from_be_bytes(header[8..16].try_into().unwrap()), 0, &[]);
                // Without taking another byte.
                let hung_up = PollFd::new(&session.stream, PollFlags::RDHUP);
                poll(&mut [hung_up], None).unwrap();
            } else {
                session.serve();
            }
        },
    );
    let rig = rig(&config(&server.image()));
    let data = pattern(4 << 20, 99);
    crate::disk::write_large(&rig, 0, &data);
    assert!(server.stored()[..data.len()] == data);
    assert_eq!(rig.counter("nbd_losses"), 1);
}

#[test]
fn e07_a_server_that_says_nothing_is_given_up_after_the_time_that_was_set() {
    let silences: [Arc<Act>; 3] = [
        Arc::new(|_, _| {}),
        Arc::new(|server, _| server.send(&0x668e33efu32.to_be_bytes())),
        Arc::new(|server, request| server.chunk_of(DONE, 1, request.cookie, 4096 + 8, &at(START, &[1; 2000]))),
    ];
    for act in silences {
        let server = Played::new(
            |_| Export::default(),
            move |mut session, number| {
                if number == 0 {
                    let request = session.request().unwrap();
                    act(&mut session, &request);
                    session.stall();
                } else {
                    session.serve();
                }
            },
        );
        let rig = rig(&Config { answer_timeout: 1, ..config(&server.image()) });
        assert_eq!(rig.read(16, 8).data, right());
        assert_eq!((rig.counter("nbd_losses"), rig.counter("nbd_resent")), (1, 1));
    }
}

#[test]
fn a_server_that_owes_nothing_may_be_silent_for_as_long_as_it_likes() {
    let server = Played::honest(Export::default());
    let rig = rig(&Config { answer_timeout: 2, ..config(&server.image()) });
    (0..5).for_each(|request| offer(&rig, request, kind::IN, 16));
    rig.kick();
    wait_used(&rig, 5);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(rig.read(16, 8).data, right());
    assert_eq!((rig.counter("nbd_losses"), server.connections()), (0, 1));
}

#[test]
fn a_reset_does_not_wait_for_a_server_that_dawdles() {
    // A byte now and then, which is progress, and none at all.
    for pause in [Duration::from_millis(200), Duration::from_secs(3600)] {
        let server = Played::new(
            |_| Export::default(),
            move |mut session, _| {
                let Some(request) = session.request() else { return };
                session.chunk_of(DONE, 1, request.cookie, 4096 + 8, &at(START, &[]));
                while session.stream.write_all(&[1]).is_ok() {
                    std::thread::sleep(pause);
                }
            },
        );
        let mut rig = rig(&config(&server.image()));
        for request in 0..20 {
            offer(&rig, request, kind::IN, 16);
        }
        rig.kick();
        eventually("the requests are taken", || server.connections() == 1);
        assert!(rig.stop().is_some());
        wait_used(&rig, 20);
        assert_eq!(rig.status(0), IOERR);
    }
}

#[test]
fn requests_that_were_not_answered_have_no_status() {
    let server = Played::new(|_| Export::default(), |session, _| session.stall());
    let rig = rig(&config(&server.image()));
    offer(&rig, 0, kind::IN, 0);
    rig.kick();
    eventually("it is taken", || rig.counters.snapshot().requests == 1);
    assert_eq!(rig.status(0), UNTOUCHED);
    assert_eq!(rig.bytes(buffer(0), 4), [0; 4]);
}

/// A chunk for the request, or nearly: each part is right or anything.
fn almost_a_chunk() -> impl Strategy<Value = (u16, u16, u64, u32, Vec<u8>)> {
    let kind = prop_oneof![0..4u16, Just(1 << 15 | 1), Just(1 << 15 | 2), any::<u16>()];
    let other_cookie = prop_oneof![9 => Just(0), 1 => any::<u64>()];
    let offset = prop_oneof![START - 1..START + 4097, any::<u64>()];
    let data = (offset, prop_oneof![0..20_usize, 0..5000_usize]);
    let data = data.prop_map(|(offset, len)| at(offset, &pattern(len, 3)));
    (0..4u16, kind, other_cookie, prop_oneof![9 => Just(0), 1 => any::<u32>()], data)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn e07_nothing_that_a_server_sends_reaches_beyond_its_request(
        chunks in prop::collection::vec(almost_a_chunk(), 1..12),
    ) {
        let act: Arc<Act> = Arc::new(move |server, request| {
            for (flags, kind, cookie, length, data) in &chunks {
                let length = (data.len() as u32).wrapping_add(*length);
                server.chunk_of(*flags, *kind, request.cookie ^ cookie, length, data);
            }
            let _ = server.stream.shutdown(std::net::Shutdown::Both);
        });
        let (status, ..) = read_with(true, &act);
        prop_assert!(status == OK || status == IOERR);
    }
}
