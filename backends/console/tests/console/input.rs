//! What is typed, and whether the guest takes it.

use std::net::Shutdown;
use std::thread;

use testkit::driver::Descriptor;

use crate::harness::{Rig, event, pattern, receive, wait_until};
use crate::readers::{connection, read_up_to, terminal, write_all};

#[test]
fn g02_bytes_pass_to_the_guest_as_they_are() {
    let bytes: Vec<u8> = (0..=255).collect();
    let rig = Rig::classic("");
    let typist = terminal(&rig.place("0"));
    write_all(&typist, &bytes);
    assert_eq!(rig.read_input(0, bytes.len()), bytes);
    wait_until("all is counted", || rig.counter("bytes_in") == bytes.len() as u64);
}

#[test]
fn spec_5_3_6_1_input_fills_buffers_that_were_there_before_it() {
    let rig = Rig::classic("sink = \"socket\"");
    (0..3).for_each(|_| rig.offer_input_buffer(0, 4));
    let typist = connection(&rig.place("0"));
    write_all(&typist, b"abcdefghij");

    let mut read = Vec::new();
    while read.len() < 10 {
        let part = rig.next_input(0);
        assert!((1..=4).contains(&part.len()));
        read.extend(part);
        rig.offer_input_buffer(0, 4);
    }
    assert_eq!(read, b"abcdefghij");
}

#[test]
fn input_that_finds_no_buffer_waits_without_spinning_and_comes_when_there_is_one() {
    let rig = Rig::classic("sink = \"socket\"");
    let typist = connection(&rig.place("0"));
    write_all(&typist, b"early");
    wait_until("input waits", || rig.counter("input_waits") == 1);

    let before = rig.counter("passes");
    (0..50).for_each(|_| rig.print(0, b"x"));
    let passes = rig.counter("passes") - before;

    // A print is a pass or two, and each that is held for a moment a look at both queues.
    assert!(passes < 50 * 20, "{passes} passes for 50 prints");
    assert_eq!(rig.counter("input_waits"), 1);
    rig.offer_input_buffer(0, 100);
    assert_eq!(rig.next_input(0), b"early");
}

#[test]
fn a_writer_waits_for_the_guest_and_loses_nothing() {
    let rig = Rig::classic("sink = \"socket\"");
    let typist = connection(&rig.place("0"));
    let bytes = pattern(1 << 20);
    let typed = bytes.clone();
    let writer = thread::spawn(move || {
        write_all(&typist, &typed);
        typist
    });
    wait_until("input waits", || rig.counter("input_waits") == 1);
    assert!(rig.counter("bytes_in") == 0);

    let mut read = Vec::new();
    while read.len() < bytes.len() {
        rig.offer_input_buffer(0, 4096);
        read.extend(rig.next_input(0));
    }
    assert!(read == bytes);
    drop(writer.join().unwrap());
}

#[test]
fn buffers_without_room_are_given_back_empty_and_lose_no_input() {
    let rig = Rig::classic("sink = \"socket\"");
    rig.request(0, |slot| vec![Descriptor::writable(Rig::buffer(0, slot), 0)]);
    rig.request(0, |slot| vec![Descriptor::readable(Rig::buffer(0, slot), 10)]);
    rig.offer_input_buffer(0, 10);
    write_all(connection(&rig.place("0")), b"typed");
    assert_eq!((rig.next_input(0), rig.next_input(0)), (vec![], vec![]));
    assert_eq!(rig.next_input(0), b"typed");
    rig.assert_healthy();
}

#[test]
fn what_was_typed_by_one_who_left_at_once_still_comes() {
    let rig = Rig::classic("");
    for _ in 0..20 {
        write_all(terminal(&rig.place("0")), b"echo hi\r");
        assert_eq!(rig.read_input(0, 8), b"echo hi\r");
    }
}

#[test]
fn one_who_finishes_writing_can_still_read() {
    let rig = Rig::classic("sink = \"socket\"");
    let client = connection(&rig.place("0"));
    write_all(&client, b"date\r");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.read_input(0, 5), b"date\r");

    rig.print(0, b"Sat Nov 21");

    assert_eq!(read_up_to(&client, 10), b"Sat Nov 21");
}

#[test]
fn input_before_the_driver_is_kept_for_it_and_survives_a_reset() {
    let rig = Rig::new("sink = \"socket\"");
    let typist = connection(&rig.place("0"));
    write_all(&typist, b"early ");
    rig.bring_up(0);
    wait_until("input waits", || rig.counter("input_waits") == 1);
    testkit::driver::Registers::reset(&rig.transport);
    rig.bring_up(0);
    write_all(&typist, b"late");
    assert_eq!(rig.read_input(0, 10), b"early late");
}

#[test]
fn input_of_a_port_waits_until_the_guest_has_it_open() {
    let rig = Rig::multiport("[[port]]\nname = \"agent\"\nsink = \"socket\"");
    rig.control(1, event::OPEN, 0);
    rig.offer_input_buffer(1, 100);
    let peer = connection(&rig.place("agent"));
    write_all(&peer, b"ping");
    assert_eq!(rig.next_control(), (1, event::OPEN, 1, vec![]));
    rig.print(1, b"x");
    assert_eq!(rig.queue(receive(1)).used_idx(), 0);

    rig.control(1, event::OPEN, 1);

    assert_eq!(rig.next_input(1), b"ping");
}

#[test]
fn much_that_was_typed_by_one_who_has_left_still_comes() {
    for sink in ["pty", "socket"] {
        let rig = Rig::classic(&format!("sink = \"{sink}\""));
        let bytes = pattern(100_000);
        let (place, typed) = (rig.place("0"), bytes.clone());
        let writer = thread::spawn(move || match sink {
            "pty" => write_all(terminal(&place), &typed),
            _ => write_all(connection(&place), &typed),
        });

        let mut read = Vec::new();
        while read.len() < bytes.len() {
            rig.offer_input_buffer(0, 4096);
            read.extend(rig.next_input(0));
        }

        assert!(read == bytes, "{sink}");
        writer.join().unwrap();
    }
}
