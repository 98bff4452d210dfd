//! Statements of virtio 1.2 §5.1 that no other subject has.

use std::io::ErrorKind;
use std::sync::Arc;

use testkit::cases;
use testkit::driver::Registers;
use virtio_backend::{Kind, Operation};
use virtio_net::engine::HEADER_LEN;
use virtio_net::{Config, Net};

use crate::fake::FakeHost;
use crate::guest::{
    BROADCAST, CONTROL, CSUM, CTRL_GUEST_OFFLOADS, CTRL_RX, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, Guest, HOST_TSO4, MAC, MQ,
    MRG_RXBUF, MTU, PEER, RX, STATUS, config, for_card, frame, from_card, until,
};

/// NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1448, checksum of a TCP header behind an IP header at 14.
const TCP: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

fn before_start(config: &Config) -> Guest {
    let (_host, engine) = FakeHost::new(config.queues);
    Guest::before_start(Arc::new(Net::with_engine(config, engine).unwrap()), 0, 64)
}

fn offered(config: &Config) -> u64 {
    before_start(config).transport.offered_features()
}

/// Cards of all sorts, as their operators write them.
fn configurations() -> Vec<Config> {
    let mut all = Vec::new();
    for (queues, mtu) in (1..=8).flat_map(|queues| [None, Some(68), Some(1500), Some(65535)].map(|mtu| (queues, mtu))) {
        all.extend([true, false].map(|offload| Config { queues, mtu, offload, ..config() }));
    }
    all
}

#[test]
fn spec_5_1_3_nothing_is_offered_that_is_not_served() {
    // GUEST_UFO, HOST_UFO, NOTF_COAL, HASH_REPORT, GUEST_HDRLEN, RSS, RSC_EXT, STANDBY, SPEED_DUPLEX
    let unserved = [10, 14, 53, 57, 59, 60, 61, 62, 63];
    cases::each(configurations(), |config| {
        let offered = offered(&config);
        for bit in unserved {
            assert_eq!(offered >> bit & 1, 0, "feature {bit}");
        }
    });
}

#[test]
fn spec_5_1_3_1_what_follows_from_the_control_queue_is_offered_with_it() {
    cases::each(configurations(), |config| {
        let offered = offered(&config);
        assert_eq!(offered & (CONTROL | 1 << 21), CONTROL | 1 << 21);
        assert_eq!(offered & MQ != 0, config.queues > 1);
        let needs = [(GUEST_TSO4 | 1 << 8 | 1 << 54 | 1 << 55, GUEST_CSUM), (HOST_TSO4 | 1 << 12 | 1 << 56, CSUM)];
        for (some, needed) in needs {
            assert!(offered & some == 0 || offered & needed != 0);
        }
    });
}

#[test]
fn spec_5_1_4_1_the_pairs_that_are_told_can_all_be_used() {
    for queues in 2..=8 {
        let (guest, host) = Guest::configured(&Config { queues, ..config() }, CTRL_VQ | MQ);
        let told = guest.transport.load(0x108, 2) as u16;
        assert_eq!(told, queues);
        assert_eq!(guest.command(&[&[4, 0][..], &told.to_le_bytes()].concat()), 0);
        assert_eq!(host.active(), queues);
    }
}

#[test]
fn spec_5_1_4_1_an_mtu_is_68_to_65535_or_no_card_is_made() {
    for mtu in [68, 576, 1280, 1500, 65535] {
        Net::check(&Config { mtu: Some(mtu), ..config() }).unwrap();
    }
    for mtu in [0, 1, 67] {
        let error = Net::check(&Config { mtu: Some(mtu), ..config() }).unwrap_err();
        assert!(error.to_string().contains(&format!("mtu = {mtu}")), "{error}");
    }
}

#[test]
fn spec_5_1_4_1_the_mtu_stays_what_it_was() {
    let (mut guest, _host) = Guest::configured(&Config { mtu: Some(9000), ..config() }, CONTROL | STATUS | MTU);
    let mtu = |guest: &Guest| guest.transport.load(0x10a, 2);
    for at in 10..12 {
        guest.transport.store(0x100 + at, 1, 0xff);
    }
    guest.command(&[&[1, 1][..], &PEER].concat());
    for up in [false, true] {
        guest.transport.operate(Operation::Link { up }).unwrap();
        assert_eq!(mtu(&guest), 9000);
    }
    guest.restart(MTU);
    assert_eq!(mtu(&guest), 9000);
}

#[test]
fn spec_5_1_4_1_packets_up_to_the_mtu_go_to_the_host_in_one_piece() {
    for mtu in [68, 1500, 9000, 65535] {
        let (guest, host) = Guest::configured(&Config { mtu: Some(mtu), ..config() }, MTU);
        for headers in [14, 18] {
            let packet = from_card(usize::from(mtu) + headers - 4 * usize::from(mtu == 65535 && headers == 18), 4);
            guest.send(&packet);
            assert!(host.take().1 == packet, "an MTU of {mtu}, and {headers} bytes of headers");
        }
    }
}

#[test]
fn spec_5_1_4_2_without_status_the_card_works_whatever_its_cable_was_told() {
    let (guest, host) = Guest::new(0);
    guest.assert_alive(&host);
    // It stands there all the same, for who reads it.
    assert_eq!(guest.link_status(), 1);
}

#[test]
fn spec_5_1_6_2_2_without_needs_csum_its_fields_are_not_looked_at() {
    let (guest, host) = Guest::new(CSUM | HOST_TSO4);
    let values = [0, 13, 14, 59, 60, 0x7fff, 0xffff];
    let inputs = values.into_iter().flat_map(|start: u16| values.map(|offset| (start, offset)));
    cases::each(inputs, |(start, offset)| {
        let mut header = [0; HEADER_LEN];
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        guest.send_with(&header, &from_card(60, 1));
        assert_eq!(host.take(), (vec![0; HEADER_LEN], from_card(60, 1)));
    });
}

#[test]
fn spec_5_1_6_2_2_no_checksum_of_the_drivers_is_believed() {
    let (guest, host) = Guest::new(CSUM);
    // DATA_VALID is for the other direction: the host is not told that all is well.
    guest.send_with(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &from_card(60, 1));
    assert_eq!(host.take().0, [0; HEADER_LEN]);
}

#[test]
fn spec_5_1_6_3_2_without_merging_a_packet_takes_one_buffer_and_says_so() {
    let (guest, host) = Guest::new(CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4);
    let buffers = [70_000; 8].map(|len| guest.post(len));
    for (count, (buffer, len)) in (1..).zip(buffers.into_iter().zip([14, 60, 1514, 9000, 65_000, 60, 1514, 14])) {
        host.put_with(&TCP, &for_card(len, 1));
        assert_eq!(guest.wait_rx(count).len as usize, HEADER_LEN + len);
        assert_eq!(guest.bytes(buffer + 10, 2), [1, 0]);
    }
    assert_eq!(guest.queues[RX].used_idx(), 8);
}

#[test]
fn spec_5_1_6_4_1_no_buffer_of_a_packet_is_used_before_all_are() {
    let (guest, host) = Guest::new(MRG_RXBUF);
    host.put(&for_card(600, 1));
    for posted in 1..=6 {
        guest.post(100);
        if posted < 6 {
            until("the card has taken it", || guest.counter("requests") >= posted);
            assert_eq!(guest.queues[RX].used_idx(), 0);
        }
    }
    guest.post(100);
    assert_eq!(guest.wait_rx(7).len, 12);
}

#[test]
fn spec_5_1_6_4_1_large_packets_without_a_checksum_to_make_are_not_delivered() {
    let (guest, host) = Guest::new(CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4);
    guest.post_many(4, 70_000);
    let changes: [(usize, &[u8]); 4] = [(0, &[0]), (0, &[2]), (4, &[0, 0]), (4, &[0xff, 0xff])];
    for (dropped, (at, value)) in (1..).zip(changes) {
        let mut header = TCP;
        header[at..at + value.len()].copy_from_slice(value);
        host.put_with(&header, &for_card(20_000, 1));
        guest.wait_counter("rx_dropped_offload", dropped);
    }
    host.put_with(&TCP, &for_card(20_000, 1));
    assert_eq!(guest.wait_rx(1).len, 20_012);
}

#[test]
fn spec_5_1_6_5_1_1_each_mode_is_taken_on_and_off() {
    let (guest, _host) = Guest::new(CONTROL);
    for mode in 0..6 {
        for on in [1, 0, 0xff, 0] {
            assert_eq!(guest.command(&[0, mode, on]), 0, "mode {mode} to {on}");
        }
    }
}

#[test]
fn spec_5_1_6_5_1_1_without_the_extra_modes_there_are_two() {
    let (guest, _host) = Guest::new(CTRL_VQ | CTRL_RX);
    let answers: Vec<u8> = (0..7).map(|mode| guest.command(&[0, mode, 1])).collect();
    assert_eq!(answers, [0, 0, 1, 1, 1, 1, 1]);
}

#[test]
fn spec_5_1_6_5_2_1_the_table_holds_when_the_command_is_answered() {
    let (guest, host) = Guest::new(CONTROL);
    let group = [1, 0, 0x5e, 0, 0, 1];
    assert_eq!(guest.command(&[0, 0, 0]), 0);
    for (entries, passes) in [(0u32, false), (1, true), (0, false), (1, true)] {
        let addresses = &group[..6 * entries as usize];
        let data = [&[1, 0, 0, 0, 0, 0][..], &entries.to_le_bytes(), addresses].concat();
        guest.post(2000);
        let passed = guest.counter("rx_packets");
        assert_eq!(guest.command(&data), 0);
        // The packet comes after the answer.
        host.put(&frame(group, PEER, &[0; 46]));
        host.put(&frame(BROADCAST, PEER, &[0; 46]));
        until("both are judged", || {
            guest.post(2000);
            guest.counter("rx_packets") == passed + 1 + u64::from(passes)
        });
    }
}

#[test]
fn spec_5_1_6_5_3_vlans_are_accepted_as_they_are_listed() {
    let (guest, host) = Guest::new(CONTROL);
    assert_eq!(guest.command(&[0, 0, 0]), 0);
    let tagged = |vlan: u16| [&MAC[..], &PEER, &[0x81, 0], &vlan.to_be_bytes(), &[8, 0], &[0; 46]].concat();
    let receives = |vlan: u16| {
        guest.post(2000);
        let (passed, dropped) = (guest.counter("rx_packets"), guest.counter("rx_dropped_filtered"));
        host.put(&tagged(vlan));
        until("it is judged", || guest.counter("rx_packets") + guest.counter("rx_dropped_filtered") > passed + dropped);
        guest.counter("rx_packets") > passed
    };
    for vlan in [0_u16, 1, 63, 64, 4094, 4095] {
        let command = |command: u8| [&[2, command][..], &vlan.to_le_bytes()].concat();
        assert!(!receives(vlan));
        assert_eq!(guest.command(&command(0)), 0);
        assert!(receives(vlan) && !receives(vlan ^ 1));
        assert_eq!(guest.command(&command(1)), 0);
        assert!(!receives(vlan));
    }
}

#[test]
fn spec_5_1_6_5_4_2_the_acknowledgement_has_taken_effect_when_it_is_answered() {
    let (guest, _host) = Guest::new(STATUS | CTRL_VQ | 1 << 21);
    for _ in 0..20 {
        until("the driver is asked", || {
            guest.transport.operate(Operation::Link { up: false }).unwrap();
            guest.transport.operate(Operation::Link { up: true }).unwrap();
            guest.link_status() == 3
        });
        assert_eq!(guest.command(&[3, 0]), 0);
        assert_eq!(guest.link_status(), 1);
    }
}

#[test]
fn spec_5_1_6_5_6_2_nothing_is_received_by_a_pair_that_is_not_in_use() {
    let (guest, host) = Guest::configured(&Config { queues: 4, ..config() }, CTRL_VQ | MQ);
    let pairs = |pairs: u8| assert_eq!(guest.command(&[4, 0, pairs, 0]), 0);
    for pair in 0..4 {
        let address = guest.allocate(4096);
        guest.offer(2 * pair, &[testkit::driver::Descriptor::writable(address, 2000)]);
    }
    pairs(4);
    pairs(2);
    let send_to_each = || {
        for wire in &host.wires {
            wire.send(&[&[0; HEADER_LEN][..], &for_card(60, 1)].concat()).unwrap();
        }
    };
    send_to_each();
    until("the two in use receive", || guest.queues[0].used_idx() + guest.queues[2].used_idx() == 2);
    assert_eq!((guest.queues[4].used_idx(), guest.queues[6].used_idx()), (0, 0));
    pairs(4);
    send_to_each();
    until("the others receive again", || guest.queues[4].used_idx() + guest.queues[6].used_idx() == 2);
}

#[test]
fn spec_5_1_6_5_8_offloads_that_the_host_does_not_set_are_refused() {
    let (guest, host) = Guest::new(CTRL_VQ | CTRL_GUEST_OFFLOADS | CSUM | GUEST_CSUM);
    let set = |bits: u64| guest.command(&[&[5, 0][..], &bits.to_le_bytes()].concat());
    let bits = (0..64).map(|bit| 1_u64 << bit).chain([0, u64::MAX, GUEST_CSUM | 1]);
    cases::each(bits, |bits| {
        assert_eq!(set(bits) == 0, bits & !GUEST_CSUM == 0);
    });
    host.refuse();
    assert_eq!(set(GUEST_CSUM), 1);
}

#[test]
fn f07_no_error_of_the_host_keeps_the_next_packet_from_going() {
    // EPERM, EINTR, EIO, ENXIO, EBADF, ENOMEM, EFAULT, EBUSY, ENODEV, ENFILE, ENOSPC, EPIPE, EBADFD, EMSGSIZE,
    // EADDRNOTAVAIL, ENETDOWN, ENETUNREACH, ENOBUFS, ETIMEDOUT, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, ESTALE
    let errors = [1, 4, 5, 6, 9, 12, 14, 16, 19, 23, 28, 32, 77, 90, 99, 100, 101, 105, 110, 111, 112, 113, 116];
    let (guest, host) = Guest::new(0);
    cases::each(errors.into_iter().flat_map(|errno| [(errno, true), (errno, false)]), |(errno, sends)| {
        let error = std::io::Error::from_raw_os_error(errno);
        assert_ne!(error.kind(), ErrorKind::WouldBlock);
        if sends {
            let dropped = guest.counter("tx_dropped_host") + guest.counter("tx_dropped_malformed");
            host.fail_sends([error]);
            guest.send(&from_card(60, 1));
            assert_eq!(guest.counter("tx_dropped_host") + guest.counter("tx_dropped_malformed"), dropped + 1);
        } else {
            let (failed, received) = (guest.counter("rx_host_failures"), guest.counter("rx_packets"));
            host.fail_receives([error]);
            guest.post(2000);
            host.put(&for_card(60, 1));
            until("a read fails", || guest.counter("rx_host_failures") > failed);
            // What is there is found by the next event.
            host.put(&for_card(60, 1));
            guest.post(2000);
            until("both come", || guest.counter("rx_packets") == received + 2);
        }
    });
    guest.assert_alive(&host);
}
