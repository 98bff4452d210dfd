//! How connections end, in halves or at once (virtio 1.2 §5.10.6.5).

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use crate::harness::{Guest, Packet, op, pattern, wait_for};
use crate::stream::Stream;

const RECEIVE: u32 = 1;
const SEND: u32 = 2;

#[test]
fn spec_5_10_6_5_a_shutdown_of_both_halves_is_answered_by_a_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::SHUTDOWN, 500, 1).flags(RECEIVE | SEND));
    assert_eq!(guest.expect(op::RST).dst_port, 500);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.counter("connections_closed"), 1);
    // The address is free again.
    guest.connect(500, &listener);
}

#[test]
fn spec_5_10_6_5_shutdown_bits_add_up() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let _host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::SHUTDOWN, 500, 1).flags(SEND));
    guest.expect_nothing();
    guest.send(&Packet::new(op::SHUTDOWN, 500, 1).flags(RECEIVE));
    assert_eq!(guest.expect(op::RST).dst_port, 500);
}

#[test]
fn a_guest_that_has_sent_all_may_still_receive() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::RW, 500, 1).data(b"question"));
    guest.send(&Packet::new(op::SHUTDOWN, 500, 1).flags(SEND));

    let mut question = String::new();
    host.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(op::RW).data, b"answer");

    drop(host);
    let end = guest.expect(op::SHUTDOWN);
    assert_eq!(end.flags, RECEIVE | SEND);
    guest.send(&Packet::new(op::RST, 500, 1));
    guest.wait_counter("connections_closed", 1);
    guest.expect_nothing();
}

#[test]
fn a_program_that_has_sent_all_may_still_receive() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.accept(80);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(op::RW).data, b"question");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SEND);

    guest.send(&request.answer(op::RW).data(b"answer"));
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    guest.send(&request.answer(op::SHUTDOWN).flags(RECEIVE | SEND));
    assert_eq!(guest.expect(op::RST).dst_port, 80);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_program_cannot_write_to_a_guest_that_receives_no_more() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.accept(80);
    guest.send(&request.answer(op::SHUTDOWN).flags(RECEIVE));
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.send(&request.answer(op::RW).data(b"still here"));
    host.read_exact(&mut [0; 10]).unwrap();
}

#[test]
fn a_guest_hears_that_a_program_receives_no_more() {
    let mut guest = Guest::new();
    let (host, request) = guest.accept(80);
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(&request.answer(op::RW).data(b"nobody reads this"));
    assert_eq!(guest.expect(op::SHUTDOWN).flags, RECEIVE);
    (&host).write_all(b"still here").unwrap();
    assert_eq!(guest.expect(op::RW).data, b"still here");
}

#[test]
fn what_a_program_wrote_before_it_went_arrives_whole_and_before_the_end() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = Stream::connect(&mut guest, 500, 1, 4000);
    let mut host = listener.1.accept().unwrap().0;
    host.write_all(&pattern(50_000, 9)).unwrap();
    drop(host);

    let mut all = Vec::new();
    while stream.shutdown == 0 {
        stream.hear(&guest.recv());
        all.extend(stream.take(&guest, 1500));
    }
    all.extend(&stream.received);
    assert_eq!(all, pattern(50_000, 9));
    assert_eq!(stream.shutdown, RECEIVE | SEND);
}

#[test]
fn what_a_guest_sent_before_it_closed_arrives_whole() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = Stream::connect(&mut guest, 500, 1, 4000);
    let mut host = listener.1.accept().unwrap().0;
    // More than the socket takes by itself.
    let mut sent = Vec::<u8>::new();
    while sent.len() < 400_000 {
        let chunk = pattern(50_000, sent.len() as u8);
        let len = stream.send(&guest, &chunk);
        sent.extend(&chunk[..len]);
        guest.send(&stream.packet(op::CREDIT_REQUEST));
        stream.hear(&guest.expect_any());
    }
    guest.send(&stream.packet(op::SHUTDOWN).flags(RECEIVE | SEND));

    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all == sent);
    assert_eq!(guest.expect(op::RST).dst_port, 500);
}

#[test]
fn a_reset_ends_a_connection_at_once() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::RST, 500, 1));
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    guest.expect_nothing();
    assert_eq!(guest.counter("connections_closed"), 1);
}

#[test]
fn spec_5_10_6_5_a_guest_that_does_not_end_its_side_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let host = guest.connect(500, &listener);
    drop(host);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, RECEIVE | SEND);
    assert_eq!(guest.expect(op::RST).dst_port, 500);
    assert_eq!(guest.counter("timeouts"), 1);
}

#[test]
fn g08_a_program_that_never_reads_does_not_keep_a_closed_connection_for_ever() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = Stream::connect(&mut guest, 500, 1, 4000);
    let _deaf = listener.1.accept().unwrap().0;
    while stream.send(&guest, &pattern(50_000, 0)) > 0 {
        guest.send(&stream.packet(op::CREDIT_REQUEST));
        stream.hear(&guest.expect_any());
    }
    guest.send(&stream.packet(op::SHUTDOWN).flags(RECEIVE | SEND));
    guest.expect_nothing();
    assert_eq!(guest.expect(op::RST).dst_port, 500);
    wait_for(|| guest.counter("connections_closed") == 1, || "the end".into());
}
