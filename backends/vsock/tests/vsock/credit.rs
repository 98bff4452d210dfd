//! Credit, both ways (virtio 1.2 §5.10.6.3).

use std::io::{Read, Write};

use crate::harness::{Guest, Packet, op, pattern, wait_for};
use crate::stream::Stream;

#[test]
fn spec_5_10_6_3_2_data_is_sent_only_into_the_guests_room() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = Stream::connect(&mut guest, 500, 1, 10_000);
    let mut host = listener.1.accept().unwrap().0;

    host.write_all(&pattern(25_000, 1)).unwrap();
    while stream.received.len() < 10_000 {
        stream.hear(&guest.expect(op::RW));
    }
    // There is more, and the room is full: the device asks, once.
    stream.hear(&guest.expect(op::CREDIT_REQUEST));
    guest.send(&stream.packet(op::CREDIT_UPDATE));
    guest.expect_nothing();
    assert_eq!(guest.counter("credit_waits"), 1);

    let mut all = stream.take(&guest, 10_000);
    while all.len() < 25_000 {
        stream.hear(&guest.recv());
        all.extend(stream.take(&guest, 3_000));
    }
    assert_eq!(all, pattern(25_000, 1));
}

#[test]
fn spec_5_10_6_3_2_packets_of_a_stream_say_what_room_there_is() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    guest.send(&Packet::new(op::REQUEST, 500, 1));
    let response = guest.expect(op::RESPONSE);
    let mut host = listener.1.accept().unwrap().0;
    assert_eq!((response.buf_alloc, response.fwd_cnt), (256 << 10, 0));

    guest.send(&Packet::new(op::RW, 500, 1).data(b"seven b"));
    host.read_exact(&mut [0; 7]).unwrap();
    host.write_all(b"x").unwrap();
    let packet = guest.expect(op::RW);
    assert_eq!((packet.buf_alloc, packet.fwd_cnt), (256 << 10, 7));

    let request = guest.accept(80).1;
    assert_eq!((request.buf_alloc, request.fwd_cnt), (256 << 10, 0));
}

#[test]
fn who_asks_for_credit_is_told() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let _host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::RW, 500, 1).data(&[0; 1000]));
    guest.expect_nothing();
    guest.send(&Packet::new(op::CREDIT_REQUEST, 500, 1));
    let update = guest.recv();
    assert_eq!((update.op, update.buf_alloc, update.fwd_cnt), (op::CREDIT_UPDATE, 256 << 10, 1000));
}

#[test]
fn a_guest_hears_of_room_before_it_runs_out() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = Stream::connect(&mut guest, 500, 1, 1 << 20);
    let mut host = listener.1.accept().unwrap().0;
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        all
    });
    let data = pattern(2 << 20, 3);
    let mut at = 0;
    while at < data.len() {
        at += stream.send(&guest, &data[at..data.len().min(at + 60_000)]);
        while let Some(packet) = guest.try_recv() {
            assert_eq!(packet.op, op::CREDIT_UPDATE);
            stream.hear(&packet);
        }
        guest.assert_alive();
    }
    guest.send(&stream.packet(op::SHUTDOWN).flags(3));
    assert_eq!(reader.join().unwrap(), data);
    assert_eq!(guest.expect(op::RST).dst_port, 500);
}

#[test]
fn g08_a_program_that_never_reads_costs_the_guest_its_credit_and_nothing_else() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = Stream::connect(&mut guest, 500, 1, 1 << 20);
    let mut deaf = listener.1.accept().unwrap().0;

    let chunk = pattern(16 << 10, 5);
    let mut sent = Vec::<u8>::new();
    // What the socket takes and 256 KiB; then the room is full and stays so.
    loop {
        guest.send(&stream.packet(op::CREDIT_REQUEST));
        stream.hear(&guest.expect_any());
        match stream.send(&guest, &chunk) {
            0 => break,
            some => sent.extend(&chunk[..some]),
        }
        assert!(sent.len() < 8 << 20, "the device takes it all");
    }
    assert!(sent.len() >= 256 << 10);

    // Others go on.
    let mut other = guest.connect(501, &listener);
    guest.send(&Packet::new(op::RW, 501, 1).data(b"hello"));
    other.read_exact(&mut [0; 5]).unwrap();

    // And when it reads after all, not a byte is missing.
    let mut all = vec![0; sent.len()];
    deaf.read_exact(&mut all).unwrap();
    assert!(all == sent);
    wait_for(
        || {
            while let Some(packet) = guest.try_recv() {
                stream.hear(&packet);
            }
            stream.free() == 256 << 10 || {
                guest.send(&stream.packet(op::CREDIT_REQUEST));
                false
            }
        },
        || "the guest's credit".into(),
    );
}

#[test]
fn g07_a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::RW, 500, 1).data(&vec![0; (256 << 10) + 1]));
    assert_eq!(guest.expect(op::RST).dst_port, 500);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.counter("malformed"), 1);
}

#[test]
fn g07_credit_that_cannot_be_is_not_believed() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    guest.send(&Packet::new(op::REQUEST, 500, 1).credit(100, 0));
    guest.expect(op::RESPONSE);
    let mut host = listener.1.accept().unwrap().0;

    // Nothing was sent, so nothing can have been taken: no room comes of it.
    guest.send(&Packet::new(op::CREDIT_UPDATE, 500, 1).credit(100, 1000));
    assert_eq!(guest.counter("malformed"), 1);
    host.write_all(&[7; 500]).unwrap();
    assert_eq!(guest.expect(op::RW).data.len(), 100);
    guest.expect(op::CREDIT_REQUEST);
    // More than was sent; a count that wraps; less room than is in use.
    for (buf_alloc, fwd_cnt) in [(100, 101), (100, u32::MAX), (50, 0), (0, 0)] {
        guest.send(&Packet::new(op::CREDIT_UPDATE, 500, 1).credit(buf_alloc, fwd_cnt));
    }
    guest.expect_nothing();
    // The truth works.
    guest.send(&Packet::new(op::CREDIT_UPDATE, 500, 1).credit(100, 100));
    assert_eq!(guest.expect(op::RW).data.len(), 100);
}

#[test]
fn g08_with_many_connections_each_further_one_keeps_less_for_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut rooms = Vec::new();
    for port in 0..66 {
        guest.send(&Packet::new(op::REQUEST, port, 1));
        rooms.push(guest.expect(op::RESPONSE).buf_alloc);
    }
    assert_eq!(rooms[..64], [256 << 10; 64]);
    assert_eq!(rooms[64..], [16 << 10; 2]);

    guest.send(&Packet::new(op::RST, 0, 1));
    guest.send(&Packet::new(op::REQUEST, 100, 1));
    assert_eq!(guest.expect(op::RESPONSE).buf_alloc, 256 << 10);
    drop(listener);
}
