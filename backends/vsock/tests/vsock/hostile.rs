//! What a hostile guest may send (rows G07 and G08).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use testkit::driver::{Descriptor, Registers, status};

use crate::harness::{
    CID, Guest, HEADER, HOST, Packet, RX_DATA, TX_DATA, op, pattern, raise_descriptor_limit, read_line, wait_for,
};

#[test]
fn g07_a_forged_source_is_not_heard_and_not_answered() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    for src_cid in [0, 1, HOST, CID + 1, CID | 1 << 32, u64::MAX] {
        for op in [op::RW, op::RST, op::SHUTDOWN, op::REQUEST] {
            guest.send(&Packet { src_cid, ..Packet::new(op, 500, 1).flags(3).data(b"forged") });
        }
    }
    guest.expect_nothing();
    assert_eq!(guest.counter("malformed"), 24);
    guest.send(&Packet::new(op::RW, 500, 1).data(b"true"));
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"true");
}

#[test]
fn g07_other_destinations_than_the_host_are_refused() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for dst_cid in [0, 1, CID, CID + 1, HOST | 1 << 32, 0xffff_ffff, u64::MAX] {
        guest.send(&Packet { dst_cid, ..Packet::new(op::REQUEST, 500, 1) });
        let reset = guest.recv();
        assert_eq!((reset.op, reset.src_cid, reset.src_port, reset.dst_port), (op::RST, dst_cid, 1, 500));
        guest.send(&Packet { dst_cid, ..Packet::new(op::RST, 500, 1) });
    }
    guest.expect_nothing();
    guest.connect(500, &listener);
}

#[test]
fn g07_spec_5_10_6_4_2_unknown_types_are_refused() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    for kind in [0, 2, 3, u16::MAX] {
        guest.send(&Packet { kind, ..Packet::new(op::RW, 500, 1).data(b"x") });
        let reset = guest.recv();
        assert_eq!((reset.op, reset.kind, reset.dst_port), (op::RST, kind, 500));
        guest.send(&Packet { kind, ..Packet::new(op::RST, 500, 1) });
    }
    guest.expect_nothing();
    host.write_all(b"untouched").unwrap();
    assert_eq!(guest.expect(op::RW).data, b"untouched");
}

#[test]
fn g07_unknown_operations_are_refused_and_end_a_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for op in [0, 8, 99, u16::MAX] {
        guest.send(&Packet::new(op, 400, 1));
        assert_eq!(guest.expect(op::RST).dst_port, 400);
        let mut host = guest.connect(500, &listener);
        guest.send(&Packet::new(op, 500, 1));
        assert_eq!(guest.expect(op::RST).dst_port, 500);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn g07_operations_out_of_turn_end_a_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for op in [op::REQUEST, op::RESPONSE] {
        let mut host = guest.connect(500, &listener);
        guest.send(&Packet::new(op, 500, 1));
        assert_eq!(guest.expect(op::RST).dst_port, 500);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
    for op in [op::RW, op::SHUTDOWN, op::REQUEST, op::CREDIT_REQUEST] {
        let host = guest.dial(b"CONNECT 80\n");
        let request = guest.expect(op::REQUEST);
        guest.send(&request.answer(op));
        assert_eq!(guest.expect(op::RST).dst_port, 80);
        assert_eq!(read_line(&host), "");
    }
    let mut host = guest.connect(500, &listener);
    guest.send(&Packet::new(op::SHUTDOWN, 500, 1).flags(2));
    guest.send(&Packet::new(op::RW, 500, 1).data(b"more"));
    assert_eq!(guest.expect(op::RST).dst_port, 500);
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn g07_a_guest_cannot_accept_what_it_has_not_been_asked() {
    let mut guest = Guest::without_buffers();
    let host = guest.dial(b"CONNECT 80\n");
    // The first port that the host gives: the device has no buffer to ask in, and refuses guesses until it has a program.
    let (start, mut sent) = (1 << 30, 0);
    while guest.counter("malformed") == 0 {
        guest.send(&Packet::new(op::RESPONSE, 80, start + 1));
        sent += 1;
        assert!(sent < 200, "the guess is never heard");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(read_line(&host), "", "the program is not told that it is connected");
    assert_eq!(guest.counter("connections_accepted"), 0);
    guest.offer_usual_buffers();
    (0..sent).for_each(|_| assert_eq!(guest.recv().op, op::RST));
    guest.accept(80);
}

#[test]
fn g07_a_connection_that_has_ended_hears_nothing_more_and_the_guest_is_told_once() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(1);
    guest.send(&Packet::new(op::REQUEST, 500, 1));
    let mut host = listener.1.accept().unwrap().0;
    guest.wait_counter("connections_made", 1);
    for op in [op::REQUEST, op::RW, op::SHUTDOWN, op::REQUEST] {
        guest.send(&Packet::new(op, 500, 1).data(b"x"));
    }
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.counter("malformed"), 1, "that which ended it");
    guest.offer_usual_buffers();
    assert_eq!(guest.recv().op, op::RST);
    guest.expect_nothing();
}

#[test]
fn g07_a_length_beyond_the_buffer_ends_the_connection_without_a_byte() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for len in [5, 1 << 16, 1 << 31, u32::MAX] {
        let mut host = guest.connect(500, &listener);
        guest.send(&Packet { len, ..Packet::new(op::RW, 500, 1).data(b"four") });
        assert_eq!(guest.expect(op::RST).dst_port, 500);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn g07_a_length_below_the_buffer_counts() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    guest.send(&Packet { len: 3, ..Packet::new(op::RW, 500, 1).data(b"abcdef") });
    guest.send(&Packet { len: 0, ..Packet::new(op::RW, 500, 1).data(b"abcdef") });
    guest.send(&Packet::new(op::RW, 500, 1).data(b"xyz"));
    let mut bytes = [0; 6];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"abcxyz");
}

#[test]
fn g07_a_descriptor_of_4_gib_is_never_touched() {
    let guest = Guest::new();
    guest.tx.write_chain(0, &[Descriptor::readable(TX_DATA, u32::MAX)]);
    guest.tx.publish(0);
    guest.transport.notify(1);
    wait_for(|| guest.transport.status() & status::DEVICE_NEEDS_RESET != 0, || "the device to need a reset".into());
    let mut guest = guest;
    guest.transport.reset();
    guest.start();
    guest.accept(80);
}

#[test]
fn g07_packets_shorter_than_a_header_are_dropped() {
    let mut guest = Guest::new();
    for len in [1, 43] {
        guest.send_chain(&[Descriptor::readable(TX_DATA, len)]);
    }
    // No readable byte at all.
    guest.send_chain(&[Descriptor::writable(TX_DATA, 4096)]);
    guest.expect_nothing();
    assert_eq!(guest.counter("malformed"), 3);
}

#[test]
fn g07_a_packet_may_be_in_any_number_of_pieces() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut host = guest.connect(500, &listener);
    let packet = Packet::new(op::RW, 500, 1).data(&pattern(3000, 1));
    let bytes = packet.bytes();
    for piece in [1, 7, 43, 44, 45, 1000] {
        // At most as many as the queue has entries, the last takes the rest; spread over memory.
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let (front, rest) = pieces.split_at(pieces.len().min(60));
        let rest = rest.concat();
        let parts: Vec<&[u8]> = front.iter().copied().chain((!rest.is_empty()).then_some(&rest[..])).collect();
        let mut chain = Vec::new();
        for (at, part) in (0..).zip(parts) {
            let address = TX_DATA + 0x8000 * at + 0xffe;
            guest.memory.write(address, part);
            chain.push(Descriptor::readable(address, part.len() as u32));
        }
        guest.send_chain(&chain);
        let mut got = vec![0; 3000];
        host.read_exact(&mut got).unwrap();
        assert_eq!(got, packet.data, "in pieces of {piece}");
    }
}

#[test]
fn g07_buffers_may_be_in_any_number_of_pieces() {
    let mut guest = Guest::without_buffers();
    let pieces = |base: u64, lens: &[u32]| {
        let mut at = base;
        let piece = |len: &u32| {
            at += 0x1_0000;
            Descriptor::writable(at - 3, *len)
        };
        lens.iter().map(piece).collect::<Vec<_>>()
    };
    guest.offer_buffers(vec![
        pieces(RX_DATA, &[44, 4096]),
        pieces(RX_DATA + (1 << 20), &[1, 1, 41, 1, 1, 99]),
        pieces(RX_DATA + (2 << 20), &[45]),
        pieces(RX_DATA + (3 << 20), &[20, 10_000, 30_000]),
    ]);
    let mut host = guest.accept(80).0;
    let data = pattern(200_000, 2);
    let writer = thread::spawn(move || host.write_all(&pattern(200_000, 2)).map(|()| host));
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(guest.expect(op::RW).data);
    }
    assert!(got == data);
    drop(writer.join().unwrap().unwrap());
}

#[test]
fn g07_buffers_too_small_for_a_packet_come_back_empty() {
    let mut guest = Guest::without_buffers();
    let small = [1, 43, 44].map(|len| vec![Descriptor::writable(RX_DATA, len)]);
    guest.offer_buffers(small.into_iter().chain([vec![Descriptor::readable(RX_DATA, 100)]]).collect());
    guest.send(&Packet::new(op::RW, 1, 2));
    guest.rx.wait_used(4);
    assert!((0..4).all(|index| guest.rx.used(index).len == 0));
    assert_eq!(guest.counter("malformed"), 4);
    guest.offer_one(5, Descriptor::writable(RX_DATA, 45));
    assert_eq!(guest.rx.wait_used(5).len, HEADER as u32);
}

#[test]
fn g07_a_header_that_changes_meanwhile_is_judged_as_it_was_copied() {
    let guest = Guest::new();
    let listener = guest.listen(1);
    let mut guest = guest;
    let mut host = guest.connect(500, &listener);
    let reader = thread::spawn(move || {
        let mut total = 0;
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = host.read(&mut bytes) {
            assert!(bytes[..len].iter().all(|byte| *byte == b'd'), "a byte from beyond the packet");
            total += len;
        }
        total
    });
    // Another CPU of the guest makes the length 4 GiB and back, as fast as it can.
    let packet = Packet::new(op::RW, 500, 1).data(&[b'd'; 64]);
    guest.memory.write(TX_DATA, &packet.bytes());
    let (memory, stop) = (guest.memory.clone(), Arc::new(AtomicBool::new(false)));
    let flipper = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                memory.store(TX_DATA + 24, u32::MAX);
                memory.store(TX_DATA + 24, 64u32);
            }
        }
    });
    for _ in 0..500 {
        guest.send_chain(&[Descriptor::readable(TX_DATA, HEADER as u32 + 64)]);
        note(&mut guest, &mut HashMap::new());
    }
    stop.store(true, Ordering::Relaxed);
    flipper.join().unwrap();
    guest.assert_alive();
    guest.send(&Packet::new(op::RST, 500, 1));
    assert_eq!(reader.join().unwrap() % 64, 0, "whole packets only");
}

/// Counts what comes, by operation.
fn note(guest: &mut Guest, answers: &mut HashMap<u16, u32>) {
    while let Some(packet) = guest.try_recv() {
        *answers.entry(packet.op).or_default() += 1;
    }
}

#[test]
fn g08_a_hundred_thousand_connections_are_a_thousand() {
    raise_descriptor_limit();
    let mut guest = Guest::new();
    // Nobody ever accepts.
    let _listener = guest.listen(1);
    let mut answers = HashMap::new();
    let requests = (0..100_000).map(|port| Packet::new(op::REQUEST, port, 1));
    guest.send_many(requests, |guest| note(guest, &mut answers));
    wait_for(
        || {
            note(&mut guest, &mut answers);
            answers.values().sum::<u32>() == 100_000
        },
        || "an answer to each".into(),
    );
    let open = guest.counter("connections_made");
    assert!((1..=1024).contains(&open), "{open}");
    assert_eq!(answers[&op::RESPONSE], open as u32);
    assert_eq!(answers[&op::RST], 100_000 - open as u32);

    // The guest is served as before once it has cleaned up.
    guest.send_many((0..100_000).map(|port| Packet::new(op::RST, port, 1)), |_| ());
    guest.wait_counter("connections_closed", open);
    guest.accept(80);
}

#[test]
fn g08_where_a_guest_has_all_connections_that_there_are_a_program_waits_for_one_to_end() {
    raise_descriptor_limit();
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut hosts: Vec<_> = (0..1024).map(|port| guest.connect(port, &listener)).collect();
    let program = guest.dial(b"CONNECT 80\n");
    guest.expect_nothing();

    drop(hosts.pop());
    let end = guest.expect(op::SHUTDOWN);
    guest.send(&end.answer(op::RST));

    let request = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 80);
    guest.send(&request.answer(op::RESPONSE));
    assert!(read_line(&program).starts_with("OK "));
}

#[test]
fn g08_spec_5_10_6_1_2_packets_are_taken_without_receive_buffers_as_long_as_resources_last() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(1);
    guest.send(&Packet::new(op::REQUEST, 500, 1));
    let mut host = listener.1.accept().unwrap().0;
    // The device hears of it later than the program.
    guest.wait_counter("connections_made", 1);
    // Each owes an answer, one in all.
    guest.send_many((0..10_000).map(|_| Packet::new(op::CREDIT_REQUEST, 500, 1)), |_| ());
    guest.send(&Packet::new(op::RW, 500, 1).data(b"heard"));
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"heard");

    // Each owes an answer of its own: there is an end to that.
    guest.memory.write(TX_DATA, &Packet::new(op::RW, 1, 2).bytes());
    for slot in 0..guest.tx.size() {
        guest.tx.write_descriptor(slot, Descriptor::readable(TX_DATA, HEADER as u32));
    }
    let start = guest.tx.used_idx();
    let mut sent = 0u16;
    let stuck = loop {
        let taken = guest.tx.used_idx().wrapping_sub(start);
        if sent - taken < guest.tx.size() {
            guest.tx.publish(sent % guest.tx.size());
            guest.transport.notify(1);
            sent += 1;
        } else if guest.is_idle() {
            break taken;
        }
        assert!(sent < 5000, "the device takes them all");
    };
    assert!((256..=512).contains(&stuck), "{stuck}");

    // Each is answered when there are buffers, and the rest is taken.
    guest.offer_usual_buffers();
    let mut resets = 0;
    while resets < sent {
        resets += u16::from(guest.recv().op == op::RST);
    }
    guest.tx.wait_used(start.wrapping_add(sent));
    guest.assert_alive();
}

#[test]
fn g08_a_storm_of_resets_is_no_work_and_no_memory() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(1);
    guest.send_many((0..100_000).map(|port| Packet::new(op::RST, port, 1)), |_| ());
    // To and fro: connections that the guest resets before it hears of them.
    for _ in 0..2_000 {
        guest.send(&Packet::new(op::REQUEST, 500, 1));
        guest.send(&Packet::new(op::RST, 500, 1));
        drop(listener.1.accept().unwrap());
    }
    guest.offer_usual_buffers();
    guest.expect_nothing();
    // Whether the host had answered by then depends on who was faster.
    let [made, closed, refused] =
        ["connections_made", "connections_closed", "connections_refused"].map(|name| guest.counter(name));
    assert_eq!((made, made + refused), (closed, 2_000));
}

#[test]
fn g08_nothing_spins_while_everyone_waits() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    // Data that the guest has no room for; data that the host does not read; a program that has gone.
    guest.send(&Packet::new(op::REQUEST, 500, 1).credit(0, 0));
    guest.expect(op::RESPONSE);
    let mut full = listener.1.accept().unwrap().0;
    full.write_all(&pattern(50_000, 0)).unwrap();
    guest.expect(op::CREDIT_REQUEST);
    let deaf = guest.connect(501, &listener);
    for _ in 0..4 {
        guest.send(&Packet::new(op::RW, 501, 1).data(&pattern(64 << 10, 0)));
    }
    guest.send(&Packet::new(op::REQUEST, 502, 1).credit(0, 0));
    guest.expect(op::RESPONSE);
    let mut gone = listener.1.accept().unwrap().0;
    gone.write_all(b"unread").unwrap();
    drop(gone);
    guest.expect(op::CREDIT_REQUEST);

    // And no receive buffers, with one more thing to say.
    guest.transport.write(testkit::driver::Register::QueueSel, 0);
    guest.transport.write(testkit::driver::Register::QueueReset, 1);
    guest.send(&Packet::new(op::CREDIT_REQUEST, 500, 1));
    wait_for(|| guest.is_idle(), || "the lane to sleep".into());
    drop(deaf);
}
