//! How connections come to be, from either side, and how they do not.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use testkit::driver::{Descriptor, RawQueue, Register, Registers, status};

use crate::harness::{CID, Guest, HOST, Packet, RX_DATA, op, read_line, wait_for};

#[test]
fn spec_5_10_4_the_driver_reads_its_context_id() {
    let guest = Guest::new();
    assert_eq!(guest.transport.read(Register::DeviceId), 19);
    assert_eq!(guest.transport.load(0x100, 4) | guest.transport.load(0x104, 4) << 32, CID);
}

#[test]
fn spec_5_10_3_streams_are_offered_and_may_not_be_declined_if_they_are_not_implied() {
    let guest = Guest::new();
    let (stream, no_implied) = (1, 1 << 2);
    assert_eq!(guest.transport.offered_features() & 0xff, stream | no_implied);
    let version_1 = 1 << 32;
    for (features, good) in [(0, true), (stream, true), (stream | no_implied, true), (no_implied, false)] {
        guest.transport.reset();
        assert_eq!(guest.transport.negotiate(version_1 | features), good, "{features}");
    }
}

#[test]
fn spec_5_10_3_2_without_any_feature_negotiated_there_are_streams() {
    let mut guest = Guest::new();
    guest.transport.reset();
    [&guest.rx, &guest.tx, &guest.event].into_iter().for_each(RawQueue::clear);
    guest.forget_buffers();
    assert!(guest.transport.negotiate(1 << 32));
    for (index, queue) in [(0, &guest.rx), (1, &guest.tx), (2, &guest.event)] {
        guest.transport.set_up_queue(index, queue);
    }
    guest.transport.add_status(status::DRIVER_OK);
    guest.offer_usual_buffers();

    let listener = guest.listen(1024);
    let _host = guest.connect(5000, &listener);
    guest.accept(80);
}

#[test]
fn a_guest_connects_to_who_listens_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);

    let mut host = guest.connect(5000, &listener);
    guest.send(&Packet::new(op::RW, 5000, 1024).data(b"to the host"));
    let mut bytes = [0; 11];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");

    host.write_all(b"to the guest").unwrap();
    let packet = guest.expect(op::RW);
    assert_eq!(packet.data, b"to the guest");
    assert_eq!((packet.src_cid, packet.src_port, packet.dst_port), (HOST, 1024, 5000));
    assert_eq!(guest.counter("connections_made"), 1);
    assert_eq!((guest.counter("bytes_to_host"), guest.counter("bytes_to_guest")), (11, 12));
}

#[test]
fn spec_5_10_6_5_a_guest_is_reset_where_nobody_listens() {
    let mut guest = Guest::new();
    // A name that nobody listens at any more.
    drop(guest.listen(7));
    for port in [6, 7] {
        guest.send(&Packet::new(op::REQUEST, 5000, port));
        let reset = guest.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (port, 5000));
    }
    assert_eq!(guest.counter("connections_refused"), 2);
    // The ports can be used again at once.
    let listener = guest.listen(8);
    guest.connect(5000, &listener);
}

#[test]
fn a_program_connects_to_a_port_of_the_guest_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.accept(80);
    assert!(request.src_port >= 1 << 30, "a port that nobody listens at");

    host.write_all(b"GET").unwrap();
    assert_eq!(guest.expect(op::RW).data, b"GET");
    guest.send(&request.answer(op::RW).data(b"200"));
    let mut bytes = [0; 3];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"200");
    assert_eq!(guest.counter("connections_accepted"), 1);
}

#[test]
fn what_a_program_says_behind_its_greeting_is_data() {
    let mut guest = Guest::new();
    let _host = guest.dial(b"CONNECT 80\nGET / HTTP/1.0\n");
    let request = guest.expect(op::REQUEST);
    guest.expect_nothing();
    guest.send(&request.answer(op::RESPONSE));
    assert_eq!(guest.expect(op::RW).data, b"GET / HTTP/1.0\n");
}

#[test]
fn a_greeting_may_come_in_pieces() {
    let mut guest = Guest::new();
    let mut host = guest.dial(b"CONN");
    guest.expect_nothing();
    for piece in [&b"ECT 8"[..], b"1", b"\n"] {
        host.write_all(piece).unwrap();
    }
    assert_eq!(guest.expect(op::REQUEST).dst_port, 81);
}

#[test]
fn a_program_that_the_guest_refuses_sees_the_end_and_no_ok() {
    let mut guest = Guest::new();
    let host = guest.dial(b"CONNECT 80\n");
    let request = guest.expect(op::REQUEST);
    guest.send(&request.answer(op::RST));
    assert_eq!(read_line(&host), "");
    guest.wait_counter("connections_refused", 1);
    guest.expect_nothing();
}

#[test]
fn a_program_that_goes_before_the_guest_answers_is_a_reset() {
    let mut guest = Guest::new();
    drop(guest.dial(b"CONNECT 80\n"));
    // Whether the guest hears of it depends on who was faster; if it does, it hears the end as well.
    guest.wait_counter("connections_refused", 1);
    let packets: Vec<_> = std::iter::from_fn(|| guest.try_recv().map(|packet| packet.op)).collect();
    assert!([vec![], vec![op::REQUEST], vec![op::REQUEST, op::RST]].contains(&packets), "{packets:?}");
}

#[test]
fn of_a_program_that_goes_before_the_guest_can_be_asked_the_guest_hears_nothing() {
    let mut guest = Guest::without_buffers();
    let host = guest.dial(b"CONNECT 80\n");
    wait_for(|| guest.is_idle(), || "the end of a pass".into());
    drop(host);
    guest.wait_counter("connections_refused", 1);
    guest.offer_usual_buffers();
    guest.expect_nothing();
}

#[test]
fn a_program_that_says_something_else_or_goes_in_the_middle_of_it_is_let_go() {
    let mut guest = Guest::new();
    let program = guest.dial(b"GET / HTTP/1.1\n");
    assert_eq!(read_line(&program), "");
    for words in [&b""[..], b"CONNECT 8"] {
        drop(guest.dial(words));
    }
    guest.wait_counter("connections_refused", 3);
    guest.expect_nothing();
    assert_eq!(guest.counter("timeouts"), 0, "nobody was waited for");
}

#[test]
fn connections_from_the_host_have_ports_of_their_own() {
    let mut guest = Guest::new();
    let (_a, first) = guest.accept(80);
    let (_b, second) = guest.accept(80);
    assert_ne!(first.src_port, second.src_port);
}

#[test]
fn a_guest_waits_where_a_program_is_slow_to_accept() {
    let mut guest = Guest::new();
    // A backlog of one is full with two; std has no say in it.
    let path = guest.place_of(9);
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = UnixListener::from(socket);

    for port in [100, 101] {
        guest.send(&Packet::new(op::REQUEST, port, 9));
    }
    assert_eq!(guest.expect(op::RESPONSE).dst_port, 100);
    guest.expect_nothing();
    let _first = listener.accept().unwrap();
    assert_eq!(guest.expect(op::RESPONSE).dst_port, 101);
}

#[test]
fn g08_who_never_answers_is_given_up() {
    let mut guest = Guest::new();
    let silent = guest.dial(b"");
    let slow = guest.dial(b"CONNECT ");
    let unanswered = guest.dial(b"CONNECT 80\n");
    let request = guest.expect(op::REQUEST);

    for host in [&silent, &slow, &unanswered] {
        assert_eq!(read_line(host), "", "the connection ends");
    }
    let reset = guest.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (request.src_port, 80));
    guest.wait_counter("timeouts", 3);
    // A late answer is to nobody.
    guest.send(&request.answer(op::RESPONSE));
    assert_eq!(guest.expect(op::RST).src_port, request.src_port);
    guest.accept(80);
}

#[test]
fn g08_a_guest_that_makes_no_room_for_the_question_is_not_waited_for_and_hears_nothing_of_it() {
    let mut guest = Guest::without_buffers();
    let host = guest.dial(b"CONNECT 80\n");
    assert_eq!(read_line(&host), "", "the connection ends");
    guest.wait_counter("timeouts", 1);
    guest.offer_usual_buffers();
    guest.expect_nothing();
    guest.accept(80);
}

#[test]
fn a_reset_of_the_device_closes_all_connections_and_new_ones_work() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut hosts = [guest.connect(1, &listener), guest.accept(80).0];

    guest.transport.reset();
    for host in &mut hosts {
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }

    // Who calls while there is no driver waits; and there may be more than the device lets in at a time.
    let hosts: Vec<_> = (0..40).map(|_| guest.dial(b"CONNECT 81\n")).collect();
    guest.start();
    for _ in &hosts {
        let request = guest.expect(op::REQUEST);
        guest.send(&request.answer(op::RESPONSE));
    }
    assert!(hosts.iter().all(|host| read_line(host).starts_with("OK ")));
    guest.connect(1, &listener);
}

#[test]
fn a_reset_of_a_queue_costs_no_connection() {
    let mut guest = Guest::new();
    let (mut host, _request) = guest.accept(80);

    guest.transport.write(Register::QueueSel, 0);
    guest.transport.write(Register::QueueReset, 1);
    wait_for(|| guest.transport.read(Register::QueueReset) == 0, || "the queue's reset".into());
    host.write_all(b"while there is no queue").unwrap();
    guest.rx.clear();
    guest.forget_buffers();
    guest.transport.set_up_queue(0, &guest.rx.clone());
    guest.offer_usual_buffers();

    assert_eq!(guest.expect(op::RW).data, b"while there is no queue");
}

#[test]
fn spec_5_10_6_7_buffers_for_events_are_kept_as_there_are_none() {
    let mut guest = Guest::new();
    guest.event.write_chain(0, &[Descriptor::writable(RX_DATA + (1 << 20), 4)]);
    guest.event.publish(0);
    guest.transport.notify(2);
    guest.accept(80);
    assert_eq!(guest.event.used_idx(), 0);
    guest.transport.reset();
    guest.start();
    guest.accept(80);
}
