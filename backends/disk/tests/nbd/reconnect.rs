//! Servers that go away and come back, or do not, or come back as another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use virtio_backend::Operation;
use virtio_disk::{Cache, Config, OnError};

use crate::disk::{buffer, config, eventually, lane, make, offer, rig, wait_used};
use crate::harness::{IOERR, OK, SECTOR, kind, pattern, segment};
use crate::played::{CAPABLE, Export, FLUSH, Played, READ_ONLY, TRIM, WRITE, WRITE_ZEROES};
use crate::servers::Server;

#[test]
fn a_server_killed_and_started_again_costs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, pattern(1 << 20, 1)).unwrap();
    let mut server = Server::nbdkit(&["--filter=delay", "file", path.to_str().unwrap(), "wdelay=5ms"]);
    let rig = rig(&Config { cache: Cache::Writethrough, ..config(&server.image("")) });
    let mut used = 0;
    for round in 0..6u8 {
        for request in 0..85 {
            rig.memory.write(buffer(request), &pattern(SECTOR, round ^ request as u8));
            offer(&rig, request, kind::OUT, u64::from(request) + 85 * u64::from(round));
        }
        rig.kick();
        // In the middle of it.
        eventually("the server answers some", || rig.queue.used_idx() > used + 4);
        server.restart();
        used += 85;
        wait_used(&rig, used);
        assert!((0..85).all(|request| rig.status(3 * request) == OK));
        assert_eq!(rig.flush(), OK, "every write was durable");
        used += 1;
    }
    let stored = std::fs::read(&path).unwrap();
    for (at, sector) in stored.chunks(SECTOR).take(85 * 6).enumerate() {
        assert_eq!(sector, pattern(SECTOR, (at / 85) as u8 ^ (at % 85) as u8), "{at}");
    }
    assert!(rig.counter("nbd_reconnects") >= 1);
    assert_eq!(rig.counter("errors"), 0);
}

/// A server whose first connection ends after so many requests, answered; the others are honest.
fn ending_after(requests: usize, export: Export) -> Played {
    Played::new(
        move |_| export,
        move |mut session, number| {
            if number == 0 {
                for _ in 0..requests {
                    let Some(request) = session.request() else { return };
                    session.answer(&request);
                }
                session.request();
            } else {
                session.serve();
            }
        },
    )
}

#[test]
fn after_writes_that_were_not_flushed_the_flush_fails_until_the_reset() {
    let server = ending_after(2, Export::default());
    let rig = rig(&config(&server.image()));
    assert_eq!((rig.flush(), rig.write(0, &[1; SECTOR])), (OK, OK));

    // The connection ends at this one, which is done by the next.
    assert_eq!(rig.read(0, 1).status, OK);

    assert_eq!((rig.flush(), rig.flush()), (IOERR, IOERR));
    assert_eq!(rig.write(1, &[2; SECTOR]), OK);
    let rig = rig.reset();
    assert_eq!(rig.flush(), OK);
}

#[test]
fn a_flush_under_way_when_the_server_goes_fails_as_well() {
    let server = ending_after(1, Export::default());
    let rig = rig(&config(&server.image()));
    assert_eq!(rig.write(0, &[1; SECTOR]), OK);
    assert_eq!(rig.flush(), IOERR);
}

#[test]
fn what_was_flushed_or_durable_by_itself_is_not_in_doubt() {
    let server = ending_after(2, Export::default());
    let flushed = rig(&config(&server.image()));
    assert_eq!((flushed.write(0, &[1; SECTOR]), flushed.flush()), (OK, OK));
    assert_eq!((flushed.read(0, 1).status, flushed.flush()), (OK, OK));
    assert_eq!(flushed.counter("nbd_reconnects"), 1);

    let server = ending_after(2, Export::default());
    let durable = rig(&Config { cache: Cache::Writethrough, ..config(&server.image()) });
    assert_eq!((durable.write(0, &[1; SECTOR]), durable.write(1, &[1; SECTOR])), (OK, OK));
    assert_eq!((durable.read(0, 1).status, durable.flush()), (OK, OK));
    assert_eq!(durable.counter("nbd_reconnects"), 1);
}

#[test]
fn a_doubt_of_one_lane_is_that_of_all() {
    let export = Export { flags: CAPABLE | crate::played::MULTI_CONN, ..Export::default() };
    let server = ending_after(1, export);
    let device = make(&Config { queues: Some(2), ..config(&server.image()) }).unwrap();
    let (first, second) = (lane(&device, 0), lane(&device, 1));
    // Whichever has the connection that ends.
    for rig in [&first, &second] {
        assert_eq!((rig.write(0, &[1; SECTOR]), rig.read(0, 1).status), (OK, OK));
    }
    assert_eq!((first.flush(), second.flush()), (IOERR, IOERR));
}

#[test]
fn a_durable_write_in_two_steps_starts_with_the_first_again() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let server = Played::new(|_| Export { flags: CAPABLE & !crate::played::FUA, ..Export::default() }, {
        let seen = Arc::clone(&seen);
        move |mut session, number| {
            while let Some(request) = session.request() {
                seen.lock().unwrap().push((number, request.kind));
                if number == 0 && request.kind == FLUSH {
                    return;
                }
                session.answer(&request);
            }
        }
    });
    let rig = rig(&Config { cache: Cache::Writethrough, ..config(&server.image()) });
    assert_eq!(rig.write(0, &[1; SECTOR]), OK);
    assert_eq!(*seen.lock().unwrap(), [(0, WRITE), (0, FLUSH), (1, WRITE), (1, FLUSH)]);
}

/// A server that ends the first connection at the first request, and is of another kind from then on.
fn coming_back_as(export: Export) -> Played {
    Played::new(
        move |number| if number == 0 { Export::default() } else { export },
        |mut session, number| {
            if number == 0 {
                session.request();
            } else {
                session.serve();
            }
        },
    )
}

#[test]
fn an_export_that_comes_back_as_another_is_refused() {
    let others = [
        Export { size: 1 << 19, ..Export::default() },
        Export { flags: CAPABLE | READ_ONLY, ..Export::default() },
        Export { flags: 1, ..Export::default() },
        Export { size: 0, ..Export::default() },
        Export { blocks: Some([4096, 4096, 1 << 20]), ..Export::default() },
    ];
    for other in others {
        let server = coming_back_as(other);
        let rig = rig(&config(&server.image()));
        assert_eq!(rig.read(0, 1).status, IOERR, "{other:?}");
        assert_eq!(rig.write(0, &[1; SECTOR]), IOERR, "{other:?}");
        assert_eq!(rig.hearing.fault(), None);
    }
}

#[test]
fn what_an_export_that_comes_back_has_no_word_for_is_done_in_another_way_or_not_at_all() {
    let server = coming_back_as(Export { flags: CAPABLE & !TRIM & !WRITE_ZEROES, ..Export::default() });
    let rig = rig(&config(&server.image()));
    assert_eq!(rig.put(kind::DISCARD, 0, &segment(8, 8, 0)), OK);
    assert_eq!(server.stored()[8 * SECTOR..16 * SECTOR], pattern(1 << 20, 7)[8 * SECTOR..16 * SECTOR]);
    assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(8, 8, 0)), OK);
    assert_eq!(server.stored()[8 * SECTOR..16 * SECTOR], [0; 8 * SECTOR]);
    assert_eq!(rig.counter("nbd_reconnects"), 1);
}

#[test]
fn an_export_that_was_refused_and_is_right_again_is_taken() {
    let is_right = Arc::new(AtomicBool::new(false));
    let size = Arc::clone(&is_right);
    let server = Played::new(
        move |number| Export {
            size: if number == 0 || size.load(SeqCst) { 1 << 20 } else { 512 },
            ..Export::default()
        },
        |mut session, number| {
            if number == 0 {
                session.request();
            } else {
                session.serve();
            }
        },
    );
    let rig = rig(&config(&server.image()));
    assert_eq!(rig.read(0, 1).status, IOERR);
    is_right.store(true, SeqCst);
    eventually("it is served again", || rig.read(0, 1).status == OK);
}

#[test]
fn a_larger_export_is_the_same_one() {
    let server = Played::new(
        |number| Export { size: if number == 0 { 1 << 19 } else { 1 << 20 }, ..Export::default() },
        |mut session, number| {
            if number == 0 {
                session.request();
            } else {
                session.serve();
            }
        },
    );
    server.store.lock().unwrap().resize(1 << 20, 0);
    let rig = rig(&config(&server.image()));
    assert_eq!(rig.read(0, 1).status, OK);
    assert_eq!(rig.read(1 << 10, 1).status, IOERR, "the guest knows of no more");
}

#[test]
fn without_a_server_requests_wait_and_then_fail_if_that_is_wanted() {
    let gone = || {
        let server = Played::new(|_| Export::default(), |mut session, _| drop(session.request()));
        let path = server.path();
        (rig(&Config { reconnect_timeout: 1, ..config(&server.image()) }), server, path)
    };
    let (rig, _server, path) = gone();
    std::fs::remove_file(path).unwrap();
    assert_eq!(rig.read(0, 1).status, IOERR);
    assert_eq!(rig.read(0, 1).status, IOERR, "and no longer than once");
}

#[test]
fn a_server_that_never_answers_anything_is_without_end_as_good_as_gone() {
    let server = Played::new(|_| Export::default(), |mut session, _| drop(session.request()));
    let rig = rig(&Config { reconnect_timeout: 1, ..config(&server.image()) });
    assert_eq!(rig.read(0, 1).status, IOERR);
    // It is not asked as often as it could be.
    assert!(server.connections() < 20, "{}", server.connections());
}

#[test]
fn a_reset_does_not_wait_for_a_server_that_is_gone() {
    let server = Played::new(|_| Export::default(), |mut session, _| drop(session.request()));
    let mut rig = rig(&config(&server.image()));
    std::fs::remove_file(server.path()).unwrap();
    for round in 0..50 {
        for request in 0..20 {
            offer(&rig, request, kind::IN, 0);
        }
        rig.kick();
        eventually("they are taken", || rig.counters.snapshot().requests > 20 * round);
        rig = rig.reset();
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    let dialers = names.filter(|name| name.trim() == "nbd-dialer").count();
    assert!(dialers < 30, "{dialers} threads");
}

#[test]
fn a_disk_can_be_made_of_a_server_that_is_away_when_the_guest_starts() {
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let server = Played::new(
        |_| Export::default(),
        move |mut session, number| {
            // It ends before anything is asked.
            if number > 0 {
                while let Some(request) = session.request() {
                    counted.fetch_add(1, SeqCst);
                    session.answer(&request);
                }
            }
        },
    );
    let rig = rig(&config(&server.image()));
    assert_eq!(rig.read(0, 1).status, OK);
    assert_eq!(served.load(SeqCst), 1);
}

#[test]
fn a_request_that_has_waited_long_enough_can_be_held_until_the_operator_has_a_server() {
    let mut server = Server::nbdkit(&["memory", "1M"]);
    let rig = rig(&Config { reconnect_timeout: 1, on_error: OnError::Hold, ..config(&server.image("")) });
    server.kill();
    offer(&rig, 0, kind::IN, 0);
    rig.kick();
    eventually("it is held", || rig.counter("held") == 1);

    server.begin();

    // Until the connection is there, what is tried again is held again; meanwhile nothing is.
    eventually("it is answered", || {
        let _ = rig.disk.operate(Operation::Resume);
        rig.queue.used_idx() == 1
    });
    assert_eq!(rig.status(0), OK);
}
