//! The control queue.

use testkit::driver::Descriptor;

use crate::guest::{
    BROADCAST, CONTROL, CSUM, CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_VLAN, CTRL_VQ, GUEST_CSUM, GUEST_TSO4,
    Guest, HOST_TSO4, MAC, PEER, for_card, frame, until,
};

const OK: u8 = 0;
const ERR: u8 = 1;

const PROMISC: [u8; 2] = [0, 0];
const ALLMULTI: [u8; 2] = [0, 1];
const ALLUNI: [u8; 2] = [0, 2];
const NOMULTI: [u8; 2] = [0, 3];
const NOUNI: [u8; 2] = [0, 4];
const NOBCAST: [u8; 2] = [0, 5];
const MAC_TABLE_SET: [u8; 2] = [1, 0];
const MAC_ADDR_SET: [u8; 2] = [1, 1];
const VLAN_ADD: [u8; 2] = [2, 0];
const VLAN_DEL: [u8; 2] = [2, 1];

const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const OTHER_GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 2];

fn with<const N: usize>(command: [u8; 2], data: [u8; N]) -> Vec<u8> {
    [&command[..], &data].concat()
}

fn table(entries: u32, addresses: &[[u8; 6]]) -> Vec<u8> {
    [&entries.to_le_bytes()[..], addresses.as_flattened()].concat()
}

fn tables(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    [&MAC_TABLE_SET[..], &table(unicast.len() as u32, unicast), &table(multicast.len() as u32, multicast)].concat()
}

fn to(destination: [u8; 6]) -> Vec<u8> {
    frame(destination, PEER, &[0; 46])
}

fn tagged(vlan: u16) -> Vec<u8> {
    [&MAC[..], &PEER, &[0x81, 0], &vlan.to_be_bytes(), &[8, 0], &[0; 46]].concat()
}

/// Which of these packets the driver gets, each by its own.
fn received(guest: &Guest, host: &crate::fake::FakeHost, frames: &[Vec<u8>]) -> Vec<bool> {
    let judged = |frame: &Vec<u8>| {
        guest.post(2000);
        let (passed, dropped) = (guest.counter("rx_packets"), guest.counter("rx_dropped_filtered"));
        host.put(frame);
        until("a packet is judged", || {
            guest.counter("rx_packets") + guest.counter("rx_dropped_filtered") > passed + dropped
        });
        guest.counter("rx_packets") > passed
    };
    frames.iter().map(judged).collect()
}

#[test]
fn spec_5_1_6_5_1_1_modes_of_receiving() {
    let (guest, host) = Guest::new(CONTROL);
    let frames = [MAC, PEER, GROUP, BROADCAST].map(to);
    assert_eq!(received(&guest, &host, &frames), [true; 4], "all, until the driver says what it wants");
    assert_eq!(guest.command(&with(PROMISC, [0])), OK);
    assert_eq!(received(&guest, &host, &frames), [true, false, false, true]);
    for (mode, expected) in [
        (ALLMULTI, [true, false, true, true]),
        (NOMULTI, [true, false, false, true]),
        (ALLUNI, [true, true, false, true]),
        (NOUNI, [false, false, false, true]),
        (NOBCAST, [false, false, false, false]),
        (PROMISC, [true; 4]),
    ] {
        assert_eq!(guest.command(&with(mode, [1])), OK);
        assert_eq!(received(&guest, &host, &frames), expected, "{mode:?}");
    }
    assert_eq!(guest.counter("ctrl_commands"), 7);
    assert_eq!(guest.counter("ctrl_refused"), 0);
}

#[test]
fn spec_5_1_6_5_2_1_the_table_is_what_was_set_last_and_empty_after_reset() {
    let (mut guest, host) = Guest::new(CONTROL);
    let frames = [MAC, PEER, GROUP, OTHER_GROUP].map(to);
    for _ in 0..2 {
        assert_eq!(guest.command(&with(PROMISC, [0])), OK);
        assert_eq!(received(&guest, &host, &frames), [true, false, false, false]);
        assert_eq!(guest.command(&tables(&[PEER], &[GROUP])), OK);
        assert_eq!(received(&guest, &host, &frames), [true, true, true, false]);
        assert_eq!(guest.command(&tables(&[], &[OTHER_GROUP])), OK);
        assert_eq!(received(&guest, &host, &frames), [true, false, false, true]);
        guest.restart(CONTROL);
    }
}

#[test]
fn f06_a_table_of_more_than_is_kept_lets_all_pass() {
    let (guest, host) = Guest::new(CONTROL);
    assert_eq!(guest.command(&with(PROMISC, [0])), OK);
    let frames = [PEER, GROUP].map(to);
    assert_eq!(guest.command(&tables(&[[2; 6]; 64], &[[3; 6]; 64])), OK);
    assert_eq!(received(&guest, &host, &frames), [false, false]);
    assert_eq!(guest.command(&tables(&[[2; 6]; 65], &[])), OK);
    assert_eq!(received(&guest, &host, &frames), [true, false]);
    assert_eq!(guest.command(&tables(&[], &[[3; 6]; 10_000])), OK);
    assert_eq!(received(&guest, &host, &frames), [false, true]);
}

#[test]
fn f06_a_table_that_is_not_all_there_changes_nothing() {
    let (guest, host) = Guest::new(CONTROL);
    assert_eq!(guest.command(&with(PROMISC, [0])), OK);
    assert_eq!(guest.command(&tables(&[PEER], &[])), OK);
    let empty = table(0, &[]);
    for bad in [
        vec![],
        vec![0, 0, 0],
        table(u32::MAX, &[MAC]),
        table(0x8000_0000, &[MAC]),
        table(0x2aaa_aaab, &[MAC]),
        table(2, &[MAC]),
        table(1, &[MAC]),
        [&table(1, &[MAC])[..], &[1, 0, 0]].concat(),
        [&table(1, &[MAC])[..], &table(1, &[])].concat(),
        [&table(1, &[MAC])[..], &table(u32::MAX, &[GROUP])].concat(),
        [&table(65, &[MAC; 64])[..], &empty[..2]].concat(),
    ] {
        assert_eq!(guest.command(&[&MAC_TABLE_SET[..], &bad].concat()), ERR, "{bad:?}");
    }
    assert_eq!(received(&guest, &host, &[to(PEER), to(GROUP)]), [true, false]);
}

#[test]
fn spec_5_1_6_5_2_1_the_address_in_configuration_space_is_new_before_the_command_is_answered() {
    let (mut guest, host) = Guest::new(CONTROL);
    assert_eq!(guest.command(&with(PROMISC, [0])), OK);
    assert_eq!(guest.command(&with(MAC_ADDR_SET, PEER)), OK);
    assert_eq!(guest.mac(), PEER);
    assert_eq!(received(&guest, &host, &[to(PEER), to(MAC)]), [true, false]);
    guest.send(&frame(MAC, PEER, &[0; 46]));
    assert_eq!(guest.counter("tx_spoofed_mac"), 0);
    assert_eq!(guest.command(&with(MAC_ADDR_SET, GROUP)), ERR);
    assert_eq!(guest.command(&with(MAC_ADDR_SET, [0; 6])), ERR);
    assert_eq!(guest.mac(), PEER);

    guest.restart(CONTROL);
    assert_eq!(guest.mac(), MAC, "the next driver finds the card as it was made");
}

#[test]
fn f08_vlans_are_filtered_once_the_driver_has_a_say() {
    let (guest, host) = Guest::new(CTRL_VQ | CTRL_RX);
    assert_eq!(guest.command(&with(PROMISC, [0])), OK);
    assert_eq!(received(&guest, &host, &[tagged(7), tagged(8)]), [true, true]);

    let (guest, host) = Guest::new(CTRL_VQ | CTRL_RX | CTRL_VLAN);
    assert_eq!(guest.command(&with(PROMISC, [0])), OK);
    assert_eq!(guest.command(&with(VLAN_ADD, 7u16.to_le_bytes())), OK);
    assert_eq!(received(&guest, &host, &[tagged(7), tagged(0xe007), tagged(8), to(MAC)]), [true, true, false, true]);
    assert_eq!(guest.command(&with(VLAN_DEL, 7u16.to_le_bytes())), OK);
    assert_eq!(guest.command(&with(VLAN_ADD, 4096u16.to_le_bytes())), ERR);
    assert_eq!(received(&guest, &host, &[tagged(7)]), [false]);
}

#[test]
fn f06_what_is_unknown_or_not_negotiated_or_of_a_wrong_length_is_refused() {
    let (guest, host) = Guest::new(CONTROL);
    let all: u32 = (0..=255u8).map(|class| u32::from(guest.command(&[class, 0xff]))).sum();
    assert_eq!(all, 256);
    for bad in [
        vec![],
        vec![0],
        vec![0, 0],
        with(PROMISC, [0, 0]),
        with(VLAN_ADD, [1]),
        with(MAC_ADDR_SET, [1; 5]),
        with(MAC_ADDR_SET, [2; 7]),
        // ANNOUNCE_ACK, VQ_PAIRS_SET, RSS_CONFIG, HASH_CONFIG, GUEST_OFFLOADS_SET, NOTF_COAL
        vec![3, 0],
        with([4, 0], [1, 0]),
        with([4, 1], [0xff; 40]),
        with([4, 2], [0xff; 40]),
        with([5, 0], [0; 8]),
        with([6, 0], [0; 8]),
    ] {
        assert_eq!(guest.command(&bad), ERR, "{bad:?}");
    }
    assert_eq!(guest.counter("ctrl_refused"), 256 + 13);
    guest.assert_alive(&host);

    let (guest, host) = Guest::new(CTRL_VQ);
    for bad in [with(PROMISC, [0]), tables(&[], &[]), with(MAC_ADDR_SET, PEER), with(VLAN_ADD, [1, 0])] {
        assert_eq!(guest.command(&bad), ERR, "{bad:?}");
    }
    guest.assert_alive(&host);
}

#[test]
fn f06_a_command_without_room_for_its_answer_is_a_fault() {
    let (guest, _host) = Guest::new(CONTROL);
    let address = guest.allocate(3);
    guest.memory.write(address, &with(PROMISC, [0]));
    guest.offer(2, &[Descriptor::readable(address, 3)]);
    until("the device needs a reset", || guest.needs_reset());
    assert_eq!(guest.counter("ctrl_commands"), 0);
}

#[test]
fn spec_2_7_4_1_a_command_may_be_cut_into_any_pieces() {
    let (guest, _host) = Guest::new(CONTROL);
    let bytes = with(MAC_ADDR_SET, PEER);
    let address = guest.allocate(16);
    guest.memory.write(address, &bytes);
    let mut chain: Vec<_> = (0..8).map(|at| Descriptor::readable(address + at, 1)).collect();
    chain.push(Descriptor::writable(address + 8, 1));
    guest.offer(2, &chain);
    guest.queues[2].wait_used(1);
    assert_eq!(guest.mac(), PEER);
}

#[test]
fn spec_5_1_6_5_8_offloads_follow_the_driver() {
    let offloads = GUEST_CSUM | GUEST_TSO4;
    let features = CTRL_VQ | CTRL_GUEST_OFFLOADS | CSUM | HOST_TSO4 | offloads;
    let (mut guest, host) = Guest::new(features);
    until("the host is told at the start", || host.offloads() == offloads);
    let set = |guest: &Guest, bits: u64| guest.command(&with([5, 0], bits.to_le_bytes()));
    assert_eq!(set(&guest, GUEST_CSUM), OK);
    assert_eq!(host.offloads(), GUEST_CSUM);
    guest.post(70_000);
    host.put_with(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], &for_card(3000, 1));
    guest.wait_counter("rx_dropped_offload", 1);
    assert_eq!(set(&guest, 1 << 8), ERR, "TSO6 was not negotiated");
    assert_eq!(set(&guest, 1 << 63), ERR);
    assert_eq!((set(&guest, offloads), host.offloads()), (OK, offloads));
    host.put_with(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], &for_card(3000, 1));
    guest.wait_rx(1);

    guest.restart(CTRL_MAC_ADDR | CTRL_VQ);
    until("the host is told anew", || host.offloads() == 0);

    guest.restart(features);
    until("the host is told anew", || host.offloads() == offloads);
    host.refuse();
    assert_eq!(set(&guest, 0), ERR);
    assert_eq!(host.offloads(), offloads);
    assert_eq!(guest.counter("host_setup_failures"), 1);
}
