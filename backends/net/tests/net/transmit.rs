//! From the driver to the host.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use testkit::driver::{Descriptor, Way};
use virtio_net::Net;
use virtio_net::engine::{HEADER_LEN, MAX_FRAME};

use crate::fake::FakeHost;
use crate::guest::{CSUM, Guest, HOST_TSO4, MAC, PEER, TX, config, frame, from_card, until};

const NO_HEADER: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1448, checksum of a TCP header behind an IP header at 14.
const TCP: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn spec_2_7_4_1_a_packet_arrives_however_it_is_cut_and_named() {
    for way in Way::ALL {
        let (guest, host) = Guest::by(way, 0);
        let packet = [&NO_HEADER[..], &from_card(200, 1)].concat();
        for pieces in [&[][..], &[HEADER_LEN], &[1, 1, 1, 9, 3], &[5, 20], &[HEADER_LEN + 14, 0, 1]] {
            let count = guest.send_in(TX, &packet, pieces);
            assert_eq!(guest.queues[TX].wait_used(count).len, 0);
            assert_eq!(host.take(), (NO_HEADER.to_vec(), from_card(200, 1)), "{way:?}, {pieces:?}");
        }
        assert_eq!((guest.counter("tx_packets"), guest.counter("tx_bytes")), (5, 1000));
    }
}

#[test]
fn packets_keep_their_order() {
    for way in Way::ALL {
        let (guest, host) = Guest::by(way, 0);
        let before = guest.queues[TX].used_idx();
        for seed in 0..60 {
            guest.send_in(TX, &[&NO_HEADER[..], &from_card(60 + usize::from(seed), seed)].concat(), &[]);
        }
        for seed in 0..60 {
            assert_eq!(host.take().1, from_card(60 + usize::from(seed), seed), "{way:?}");
        }
        guest.queues[TX].wait_used(before + 60);
    }
}

#[test]
fn f01_what_is_no_packet_is_dropped_and_given_back() {
    let (guest, host) = Guest::new(CSUM);
    for len in (0..HEADER_LEN).chain([HEADER_LEN, HEADER_LEN + 1, HEADER_LEN + 13]) {
        // A descriptor without a byte is one all the same.
        let address = guest.allocate(len);
        guest.offer(TX, &[Descriptor::readable(address, len as u32)]);
    }
    guest.send(&vec![0; MAX_FRAME + 1]);
    guest.send(&vec![0; 200 << 10]);
    guest.wait_counter("tx_dropped_malformed", 17);
    assert_eq!(guest.counter("tx_packets"), 0);
    guest.assert_alive(&host);
}

#[test]
fn f01_a_chain_of_4_gib_is_refused_before_anything_is_mapped() {
    let (guest, _host) = Guest::new(0);
    guest.offer(TX, &[Descriptor::readable(0x4000_0000, u32::MAX)]);
    until("the device needs a reset", || guest.needs_reset());
}

#[test]
fn f01_what_comes_before_a_malformed_chain_is_sent() {
    let (host, engine) = FakeHost::new(1);
    let guest = Guest::before_start(Arc::new(Net::with_engine(&config(), engine).unwrap()), 0, 64);
    for seed in 0..3 {
        let address = guest.allocate(HEADER_LEN + 60);
        guest.memory.write(address, &[&NO_HEADER[..], &from_card(60, seed)].concat());
        guest.publish(TX, &[Descriptor::readable(address, 72)]);
    }
    guest.publish(TX, &[Descriptor::readable(0x4000_0000, u32::MAX)]);
    guest.start();
    (0..3).for_each(|seed| assert_eq!(host.take().1, from_card(60, seed)));
    until("the device needs a reset", || guest.needs_reset());
    assert_eq!((guest.counter("tx_packets"), guest.queues[TX].used_idx()), (3, 3));
}

#[test]
fn f01_a_chain_for_the_device_to_write_is_no_packet() {
    let (guest, host) = Guest::new(0);
    let address = guest.allocate(2000);
    guest.memory.write(address, &[0xee; 2000]);
    guest.offer(TX, &[Descriptor::writable(address, 2000)]);
    guest.wait_counter("tx_dropped_malformed", 1);
    assert_eq!(guest.bytes(address, 2000), [0xee; 2000]);
    guest.assert_alive(&host);
}

#[test]
fn f02_a_header_that_contradicts_its_packet_is_dropped() {
    let (guest, host) = Guest::new(CSUM | HOST_TSO4);
    let mut dropped = 0;
    for (at, value) in [(1, 3), (1, 4), (1, 0x81), (1, 0xff), (0, 0), (7, 0xff), (6, 3), (8, 6), (9, 0xff)] {
        let mut header = TCP;
        header[at] = value;
        guest.send_with(&header, &from_card(3000, 2));
        dropped += 1;
        guest.wait_counter("tx_dropped_malformed", dropped);
    }
    for size in [[0, 0], [0xff, 0xff]] {
        let mut header = TCP;
        header[4..6].copy_from_slice(&size);
        guest.send_with(&header, &from_card(3000, 2));
    }
    guest.wait_counter("tx_dropped_malformed", dropped + 2);
    guest.assert_alive(&host);
}

#[test]
fn spec_5_1_6_2_2_the_host_sees_what_was_checked_and_nothing_else() {
    let (guest, host) = Guest::new(CSUM | HOST_TSO4);
    let mut header = TCP;
    (header[0], header[3], header[10], header[11]) = (0xff, 0xff, 9, 9);
    guest.send_with(&header, &from_card(3000, 3));
    // The unknown flags are gone, hdr_len ends where the frame does, and num_buffers says nothing.
    assert_eq!(host.take(), ([1, 1, 0xb8, 0x0b, 0xa8, 5, 34, 0, 16, 0, 0, 0].to_vec(), from_card(3000, 3)));

    guest.send_with(&[2, 0, 60, 0, 9, 9, 9, 9, 9, 9, 9, 9], &from_card(60, 3));
    assert_eq!(host.take().0, NO_HEADER, "without NEEDS_CSUM its fields mean nothing");
}

#[test]
fn f02_offloads_that_were_not_negotiated_are_dropped() {
    let (guest, host) = Guest::new(0);
    guest.send_with(&TCP, &from_card(3000, 4));
    guest.send_with(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &from_card(100, 4));
    guest.wait_counter("tx_dropped_malformed", 2);
    guest.assert_alive(&host);
}

#[test]
fn f07_each_failure_of_the_host_costs_one_packet() {
    let (guest, host) = Guest::new(0);
    // EIO, ENOBUFS, EBADFD, ENETDOWN
    host.fail_sends([5, 105, 77, 100].map(Error::from_raw_os_error));
    for _ in 0..4 {
        guest.send(&from_card(60, 5));
    }
    assert_eq!(guest.counter("tx_dropped_host"), 4);
    host.fail_sends([Error::from_raw_os_error(22)]);
    guest.send(&from_card(60, 5));
    assert_eq!(guest.counter("tx_dropped_malformed"), 1, "EINVAL is what the kernel says of a header");
    guest.assert_alive(&host);
}

#[test]
fn f07_a_packet_waits_for_room_and_none_overtakes_it() {
    let (guest, host) = Guest::new(0);
    host.fail_sends((0..3).map(|_| ErrorKind::WouldBlock.into()));
    for seed in 0..20 {
        guest.send_in(TX, &[&NO_HEADER[..], &from_card(60, seed)].concat(), &[]);
    }
    for seed in 0..20 {
        assert_eq!(host.take().1, from_card(60, seed));
    }
    guest.wait_counter("tx_packets", 20);
    assert_eq!(guest.counter("tx_waits"), 3);
}

#[test]
fn f07_what_is_behind_a_packet_that_waits_is_judged_anew_and_counted_once() {
    let (host, engine) = FakeHost::new(1);
    let guest = Guest::before_start(Arc::new(Net::with_engine(&config(), engine).unwrap()), 0, 64);
    host.fail_sends((0..3).map(|_| ErrorKind::WouldBlock.into()));
    // All in one pass: every third is no packet.
    for seed in 0..30 {
        let frame = if seed % 3 == 1 { vec![seed; 13] } else { from_card(60, seed) };
        let packet = [&NO_HEADER[..], &frame].concat();
        let address = guest.allocate(packet.len());
        guest.memory.write(address, &packet);
        guest.publish(TX, &[Descriptor::readable(address, packet.len() as u32)]);
    }
    guest.start();
    for seed in (0..30).filter(|seed| seed % 3 != 1) {
        assert_eq!(host.take().1, from_card(60, seed));
    }
    guest.queues[TX].wait_used(30);
    let counted = ["tx_packets", "tx_dropped_malformed", "tx_waits"].map(|name| guest.counter(name));
    assert_eq!(counted, [20, 10, 3]);
    assert_eq!(guest.queues[TX].used_idx(), 30);
}

#[test]
fn f09_a_host_without_room_does_not_keep_the_lane_busy() {
    let (guest, host) = Guest::new(0);
    let mut sent = 0;
    while guest.counter("tx_waits") == 0 {
        let count = guest.send_in(TX, &[&NO_HEADER[..], &from_card(1500, 6)].concat(), &[]);
        sent += 1;
        let queue = &guest.queues[TX];
        until("the packet goes or waits", || queue.used_idx() == count || guest.counter("tx_waits") > 0);
    }
    let passes = guest.counter("passes");
    guest.pass_time();
    assert!(guest.counter("passes") <= passes + 50, "{} passes", guest.counter("passes") - passes);
    for _ in 0..sent {
        assert_eq!(host.take().1, from_card(1500, 6));
    }
    guest.assert_alive(&host);
}

#[test]
fn f08_another_source_than_the_card_is_counted_and_let_pass() {
    let (guest, host) = Guest::new(0);
    guest.send(&frame(PEER, PEER, &[0; 46]));
    guest.send(&frame(PEER, MAC, &[0; 46]));
    assert_eq!(host.take().1[6..12], PEER);
    assert_eq!(host.take().1[6..12], MAC);
    assert_eq!(guest.counter("tx_spoofed_mac"), 1);
}
