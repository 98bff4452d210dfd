//! From the host to the driver.

use std::io::Error;

use testkit::driver::{Descriptor, Way};
use virtio_net::Config;
use virtio_net::engine::{HEADER_LEN, MAX_FRAME};

use crate::guest::{
    CSUM, GUEST_CSUM, GUEST_TSO4, Guest, HOST_TSO4, MRG_RXBUF, MTU, RX, config, for_card, from_card, until,
};

const LARGE: u64 = CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4;

/// NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1448, checksum of a TCP header behind an IP header at 14.
const TCP: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

/// The header that the driver sees before a plain packet in `count` buffers.
fn header(count: u8) -> Vec<u8> {
    [&[0; 10][..], &[count, 0]].concat()
}

#[test]
fn spec_5_1_6_4_1_a_packet_lies_behind_its_header_in_one_buffer() {
    for features in [0, MRG_RXBUF, LARGE, LARGE | MRG_RXBUF] {
        let (guest, host) = Guest::new(features);
        let address = guest.post(70_000);
        host.put(&for_card(100, 1));
        assert_eq!(guest.wait_rx(1).len, 112);
        assert_eq!(guest.bytes(address, 112), [header(1), for_card(100, 1)].concat(), "{features:#x}");
        assert_eq!(guest.bytes(address + 112, 100), [0xee; 100], "nothing behind it is touched");
    }
}

#[test]
fn spec_5_1_6_4_1_a_large_packet_fills_buffers_one_by_one_and_they_come_together() {
    let (guest, host) = Guest::new(LARGE | MRG_RXBUF);
    // The first comes unexpected, the second expected; and then a small one where a large one was.
    for (round, len) in (0..).zip([60_000, 60_000, 65_000, 60, 9000, 60]) {
        let (packet, before) = (for_card(len, round), guest.queues[RX].used_idx());
        let buffers: Vec<_> = (0..50).map(|_| guest.post(1500)).collect();
        let count = (HEADER_LEN + len).div_ceil(1500) as u16;

        host.put_with(&TCP, &packet);

        guest.wait_rx(before + count);
        let mut seen = Vec::new();
        for (index, buffer) in (before..before + count).zip(&buffers) {
            let len = guest.queues[RX].used(index).len as usize;
            assert!(len == 1500 || index + 1 == before + count, "all but the last are full");
            seen.extend(guest.bytes(*buffer, len));
        }
        let mut expected = TCP;
        expected[10] = count as u8;
        assert_eq!(seen[..HEADER_LEN], expected);
        assert!(seen[HEADER_LEN..] == packet, "packet {round} is another");
        // What is left is there for the next, and would come first.
        host.put(&for_card(60, 99));
        let left = before + count + 1;
        assert_eq!(guest.wait_rx(left).len, 72);
        assert_eq!(guest.bytes(buffers[usize::from(count)], 72), [header(1), for_card(60, 99)].concat());
        (left..before + 50).for_each(|used| {
            host.put(&for_card(60, 98));
            guest.wait_rx(used + 1);
        });
    }
}

#[test]
fn an_idle_card_holds_no_guest_memory() {
    let (guest, host) = Guest::new(LARGE | MRG_RXBUF);
    (0..3).for_each(|_| guest.post_many(20, 2000));
    for _ in 0..2 {
        host.put_with(&TCP, &for_card(20_000, 1));
    }
    guest.wait_rx(22);
    guest.transport.release_memory();
    until("nothing is pinned", || guest.cache.stats().bytes_pinned == 0);
    host.put(&for_card(60, 1));
    guest.wait_rx(23);
}

#[test]
fn f03_buffers_of_a_byte_are_put_together() {
    for features in [MRG_RXBUF, LARGE | MRG_RXBUF] {
        let (host, engine) = crate::fake::FakeHost::new(1);
        let card = virtio_net::Net::with_engine(&config(), engine).unwrap();
        let guest = Guest::before_start(std::sync::Arc::new(card), features, 256);
        guest.start();
        let buffers: Vec<_> = (0..256).map(|_| guest.post(1)).collect();

        host.put(&for_card(60, 4));

        guest.wait_rx(72);
        let seen: Vec<u8> = buffers[..72].iter().flat_map(|at| guest.bytes(*at, 1)).collect();
        assert_eq!(seen, [header(72), for_card(60, 4)].concat());
    }
}

#[test]
fn f03_a_packet_that_no_number_of_the_drivers_buffers_holds_is_dropped() {
    let (guest, host) = Guest::new(MRG_RXBUF);
    guest.post_many(64, 4);
    host.put(&for_card(300, 5));
    guest.wait_counter("rx_dropped_no_fit", 1);
    assert_eq!(guest.queues[RX].used_idx(), 0);
    host.put(&for_card(60, 6));
    guest.wait_rx(18);
    assert!(!guest.needs_reset());
}

#[test]
fn f03_without_merging_a_packet_that_does_not_fit_is_dropped_and_the_buffer_stays() {
    for len in [0, 1, 11, 12, 40] {
        let (guest, host) = Guest::new(0);
        let address = guest.post(len);
        guest.post(2000);
        host.put(&for_card(60, 7));
        guest.wait_counter("rx_dropped_no_fit", 1);
        assert_eq!(guest.queues[RX].used_idx(), 0, "{len}");
        assert_eq!(guest.bytes(address, len), vec![0xee; len]);
        assert!(!guest.needs_reset());
    }
}

#[test]
fn a_packet_that_just_fits_is_received() {
    let (guest, host) = Guest::new(0);
    let address = guest.post(1526);
    host.put(&for_card(1514, 8));
    assert_eq!(guest.wait_rx(1).len, 1526);
    assert_eq!(guest.bytes(address, 1526), [header(1), for_card(1514, 8)].concat());
    let (guest, host) = Guest::new(LARGE);
    guest.post(HEADER_LEN + MAX_FRAME);
    host.put_with(&TCP, &for_card(MAX_FRAME, 8));
    assert_eq!(guest.wait_rx(1).len as usize, HEADER_LEN + MAX_FRAME);
}

#[test]
fn spec_2_7_4_1_a_buffer_may_be_cut_into_any_pieces() {
    let (guest, host) = Guest::new(LARGE);
    let address = guest.allocate(70_000);
    let lens = [1, 11, 3, 0, 30, 1000, 66_000];
    let mut at = address;
    let chain = lens.map(|len| {
        at += u64::from(len);
        Descriptor::writable(at - u64::from(len), len)
    });
    guest.offer(RX, &chain);
    host.put_with(&TCP, &for_card(3000, 9));
    assert_eq!(guest.wait_rx(1).len, 3012);
    let mut expected = TCP;
    expected[10] = 1;
    assert_eq!(guest.bytes(address, 3012), [&expected[..], &for_card(3000, 9)].concat());
}

#[test]
fn f04_without_buffers_the_card_reads_nothing_and_goes_on_when_there_are_some() {
    for features in [0, MRG_RXBUF, LARGE | MRG_RXBUF] {
        let (guest, host) = Guest::new(features);
        let buffer = guest.post(2000);
        host.put(&for_card(60, 10));
        guest.wait_rx(1);
        for seed in 0..100 {
            host.put(&for_card(60, seed));
            if seed > 8 {
                break;
            }
        }
        guest.wait_counter("rx_no_buffers", 1);
        assert_eq!(guest.counter("rx_packets"), 1);
        let buffers: Vec<_> = (0..10).map(|_| guest.post(2000)).collect();
        guest.wait_rx(11);
        for (seed, buffer) in (0..).zip(&buffers) {
            assert_eq!(guest.bytes(*buffer, 72), [header(1), for_card(60, seed)].concat(), "{features:#x}");
        }
        assert_eq!(guest.bytes(buffer, 72), [header(1), for_card(60, 10)].concat());
    }
}

#[test]
fn f04_a_packet_that_lacks_buffers_waits_for_them() {
    let (guest, host) = Guest::new(MRG_RXBUF);
    guest.post(100);
    host.put(&for_card(300, 11));
    guest.wait_counter("rx_no_buffers", 1);
    assert_eq!(guest.queues[RX].used_idx(), 0, "not a part of it is told of");
    guest.post(100);
    guest.post(500);
    let count = guest.queues[RX].wait_used(3);
    assert_eq!(count.len, 112);
    assert_eq!(guest.counter("rx_packets"), 1);
}

#[test]
fn f04_buffers_kept_for_a_packet_that_never_comes_are_used_for_the_next() {
    let (guest, host) = Guest::new(MRG_RXBUF);
    (0..3).for_each(|_| drop_packet_that_waits(&guest, &host));
    guest.post(2000);
    host.put(&for_card(60, 12));
    until("a packet comes", || guest.counter("rx_packets") == 1);
    guest.assert_alive(&host);
}

/// A packet waits for more buffers than there are when the cable is pulled out.
fn drop_packet_that_waits(guest: &Guest, host: &crate::fake::FakeHost) {
    let (waited, dropped) = (guest.counter("rx_no_buffers"), guest.counter("rx_dropped_link_down"));
    guest.post(10);
    host.put(&for_card(300, 11));
    guest.wait_counter("rx_no_buffers", waited + 1);
    guest.transport.operate(virtio_backend::Operation::Link { up: false }).unwrap();
    host.put(&for_card(300, 12));
    guest.wait_counter("rx_dropped_link_down", dropped + 2);
    guest.transport.operate(virtio_backend::Operation::Link { up: true }).unwrap();
    // The lane sees that it is up.
    guest.post(0);
    host.put(&[0; 13]);
    until("what is no packet is dropped", || guest.counter("rx_dropped_filtered") > dropped / 2);
}

#[test]
fn f03_buffers_that_come_one_by_one_and_hold_nothing_are_no_trap() {
    let (guest, host) = Guest::new(MRG_RXBUF);
    host.put(&for_card(300, 5));
    for count in 1..64 {
        guest.post(4);
        until("the card has seen it", || guest.counter("rx_dropped_no_fit") > 0 || guest.counter("requests") >= count);
    }
    guest.post(4);
    guest.wait_counter("rx_dropped_no_fit", 1);
    host.put(&for_card(60, 6));
    guest.wait_rx(18);
    assert!(!guest.needs_reset());
}

#[test]
fn f09_packets_without_buffers_do_not_keep_the_lane_busy() {
    let (guest, host) = Guest::new(0);
    guest.post(2000);
    host.put(&for_card(60, 0));
    guest.wait_rx(1);
    host.put(&for_card(60, 1));
    guest.wait_counter("rx_no_buffers", 1);
    let (passes, receives) = (guest.counter("passes"), host.receives());
    for seed in 0..5 {
        host.put(&for_card(60, seed));
    }
    guest.pass_time();
    assert!(guest.counter("passes") <= passes + 50, "{} passes", guest.counter("passes") - passes);
    assert_eq!(host.receives(), receives, "what cannot be delivered is left where it is");
}

#[test]
fn f05_packets_larger_than_the_mtu_are_not_delivered() {
    let config = Config { mtu: Some(1000), ..config() };
    let (guest, host) = Guest::configured(&config, MTU);
    assert_eq!([guest.config_byte(10), guest.config_byte(11)], 1000u16.to_le_bytes());
    guest.post_many(3, 2000);
    host.put(&for_card(1019, 12));
    host.put(&for_card(1018, 13));
    assert_eq!(guest.wait_rx(1).len, 1030);
    assert_eq!(guest.counter("rx_dropped_no_fit"), 1);
}

#[test]
fn f05_what_the_driver_did_not_negotiate_is_not_delivered() {
    for features in [0, CSUM | GUEST_CSUM] {
        let (guest, host) = Guest::new(features);
        guest.post_many(3, 70_000);
        host.put_with(&TCP, &for_card(20_000, 14));
        guest.wait_counter("rx_dropped_offload", 1);
        host.put(&for_card(60, 15));
        assert_eq!(guest.wait_rx(1).len, 72);
    }
}

#[test]
fn spec_5_1_6_4_1_without_guest_csum_flags_are_zero() {
    let (guest, host) = Guest::new(0);
    let address = guest.post(2000);
    host.put_with(&[2, 0, 1, 1, 1, 1, 1, 1, 1, 1, 7, 7], &for_card(60, 16));
    guest.wait_rx(1);
    assert_eq!(guest.bytes(address, HEADER_LEN), header(1));
}

#[test]
fn spec_5_1_6_4_1_checksums_are_left_to_a_driver_that_does_them() {
    let (guest, host) = Guest::new(CSUM | GUEST_CSUM);
    let (first, second) = (guest.post(2000), guest.post(2000));
    host.put_with(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &for_card(60, 17));
    host.put_with(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &for_card(60, 17));
    guest.wait_rx(2);
    assert_eq!(guest.bytes(first, HEADER_LEN), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
    assert_eq!(guest.bytes(second, HEADER_LEN), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn f07_failed_reads_leave_the_card_alive() {
    let (guest, host) = Guest::new(0);
    // EIO, ENOBUFS, EFAULT: a packet that is there is found by the next event.
    host.fail_receives([5, 105, 14].map(Error::from_raw_os_error));
    guest.post(2000);
    for seed in 1..=3 {
        host.put(&for_card(60, seed));
        until("a read fails", || guest.counter("rx_host_failures") >= seed.into());
    }
    host.put(&for_card(60, 4));
    guest.wait_rx(1);
    guest.assert_alive(&host);
}

#[test]
fn a_flood_is_received_whole_and_in_order() {
    Way::ALL.into_iter().for_each(flood);
}

fn flood(way: Way) {
    let (guest, host) = Guest::by(way, LARGE | MRG_RXBUF);
    const PACKETS: u16 = 2000;
    let (address, len) = (guest.allocate(64 * 2048), 2048u64);
    let post = |slot: u16| {
        let buffer = Descriptor::writable(address + len * u64::from(slot), len as u32);
        guest.queues[RX].write_chain(slot, &[guest.lender.lend_buffer(buffer)]);
        guest.queues[RX].publish(slot);
    };
    (0..64).for_each(post);
    testkit::driver::Registers::notify(&guest.transport, 0);
    let flood = std::thread::spawn({
        let host = host.clone();
        move || {
            (0..PACKETS).for_each(|number| {
                host.put(&crate::guest::frame(crate::guest::MAC, crate::guest::PEER, &number.to_le_bytes().repeat(30)))
            })
        }
    });
    for number in 0..PACKETS {
        until("the next packet comes", || guest.queues[RX].used_idx().wrapping_sub(number) as i16 > 0);
        let used = guest.queues[RX].used(number);
        assert_eq!(used.len, 12 + 14 + 60);
        let slot = used.id as u16;
        assert_eq!(guest.bytes(address + len * u64::from(slot) + 26, 2), number.to_le_bytes());
        post(slot);
        testkit::driver::Registers::notify(&guest.transport, 0);
    }
    flood.join().unwrap();
    assert_eq!(guest.counter("rx_packets"), u64::from(PACKETS));
}

#[test]
fn both_directions_go_on_beside_each_other() {
    for way in Way::ALL {
        let (guest, host) = Guest::by(way, LARGE | MRG_RXBUF);
        for round in 0..30 {
            guest.post(1600);
            host.put(&for_card(100, round));
            guest.send(&from_card(100, round));
            assert_eq!(host.take().1, from_card(100, round), "{way:?}");
            guest.wait_rx(u16::from(round) + 1);
        }
    }
}
