//! Several pairs of queues, and where the control queue is.

use testkit::driver::{Descriptor, Registers};
use virtio_net::Config;

use crate::fake::take_from;
use crate::guest::{
    CTRL_MAC_ADDR, CTRL_RX, CTRL_VLAN, CTRL_VQ, GUEST_ANNOUNCE, Guest, MQ, TX, config, for_card, from_card, until,
};

const OK: u8 = 0;
const ERR: u8 = 1;

fn four() -> Config {
    Config { queues: 4, ..config() }
}

fn set_pairs(guest: &Guest, pairs: u16) -> u8 {
    guest.command(&[&[4, 0][..], &pairs.to_le_bytes()].concat())
}

/// Sends by a pair's queue, and waits until the card is done with it.
fn send(guest: &Guest, pair: usize, seed: u8) {
    let queue = 2 * pair + TX;
    let count = guest.send_in(queue, &[&[0; 12][..], &from_card(60, seed)].concat(), &[]);
    guest.queues[queue].wait_used(count);
}

#[test]
fn spec_5_1_2_without_mq_the_control_queue_is_the_third() {
    let (guest, host) = Guest::configured(&four(), CTRL_VQ | 1 << 23);
    assert_eq!(guest.control_queue(), 2);
    assert_eq!(guest.command(&[1, 1, 0, 0x16, 0x3e, 5, 5, 5]), OK);
    assert_eq!(guest.mac(), [0, 0x16, 0x3e, 5, 5, 5]);
    guest.assert_alive(&host);
}

#[test]
fn spec_5_1_6_5_6_2_after_reset_there_is_one_pair() {
    let (mut guest, host) = Guest::configured(&four(), CTRL_VQ | MQ);
    for _ in 0..2 {
        until("the host uses one port", || host.active() == 1);
        guest.assert_alive(&host);
        send(&guest, 1, 1);
        let dropped = guest.counter("tx_dropped_link_down");
        assert_eq!(set_pairs(&guest, 4), OK);
        assert_eq!(host.active(), 4);
        for pair in 0..4 {
            send(&guest, pair, pair as u8);
            assert_eq!(take_from(&host.wires[pair]).1, from_card(60, pair as u8));
        }
        assert_eq!(guest.counter("tx_dropped_link_down"), dropped);
        guest.restart(CTRL_VQ | MQ);
    }
    assert_eq!(guest.counter("tx_dropped_link_down"), 2, "a queue that is not in use sends nothing");
}

#[test]
fn where_the_transport_keeps_the_control_queue_all_pairs_are_in_use_and_no_filter_is() {
    // What QEMU and DPDK's virtio-user leave of the driver's features when they answer the control queue themselves.
    let kept = MQ | GUEST_ANNOUNCE | CTRL_RX | CTRL_VLAN | CTRL_MAC_ADDR;
    let (mut guest, host) = Guest::configured(&four(), kept);
    for _ in 0..2 {
        until("the host uses all ports", || host.active() == 4);
        for pair in 0..4 {
            send(&guest, pair, pair as u8);
            assert_eq!(take_from(&host.wires[pair]).1, from_card(60, pair as u8));
            let address = guest.allocate(2000);
            guest.offer(2 * pair, &[Descriptor::writable(address, 2000)]);
            let for_another = crate::guest::frame([2, 0, 0, 0, 0, 7], crate::guest::PEER, &[pair as u8; 46]);
            host.wires[pair].send(&[&[0; 12][..], &for_another].concat()).unwrap();
            assert_eq!(guest.queues[2 * pair].wait_used(1).len, 72);
            assert_eq!(guest.bytes(address + 12, 60), for_another);
        }
        // Of the cable it hears without being asked to announce itself: it could not say that it did.
        for up in [false, true] {
            guest.transport.operate(virtio_backend::Operation::Link { up }).unwrap();
        }
        assert_eq!(guest.link_status(), 1);
        guest.transport.reset();
        assert_eq!(host.active(), 1, "the host is told of pairs that run");
        guest.restart(kept);
    }
}

#[test]
fn f06_numbers_of_pairs_that_there_are_not_change_nothing() {
    let (guest, host) = Guest::configured(&four(), CTRL_VQ | MQ);
    assert_eq!(set_pairs(&guest, 3), OK);
    for pairs in [0, 5, 0x8000, 0xffff] {
        assert_eq!(set_pairs(&guest, pairs), ERR, "{pairs}");
    }
    assert_eq!(guest.command(&[4, 0, 1]), ERR);
    assert_eq!(host.active(), 3);
    host.refuse();
    assert_eq!(set_pairs(&guest, 2), ERR);
    send(&guest, 2, 9);
    assert_eq!(take_from(&host.wires[2]).1, from_card(60, 9));
}

#[test]
fn each_pair_receives_by_its_own_queue() {
    let (guest, host) = Guest::configured(&four(), CTRL_VQ | MQ);
    assert_eq!(set_pairs(&guest, 4), OK);
    for pair in 0..4 {
        let address = guest.allocate(2000);
        guest.offer(2 * pair, &[Descriptor::writable(address, 2000)]);
        host.wires[pair].send(&[&[0; 12][..], &for_card(60, pair as u8)].concat()).unwrap();
        assert_eq!(guest.queues[2 * pair].wait_used(1).len, 72);
        assert_eq!(guest.bytes(address + 12, 60), for_card(60, pair as u8));
    }
}

#[test]
fn f07_the_end_of_a_queue_that_was_just_put_out_of_use_is_not_the_cards() {
    let (guest, host) = Guest::configured(&four(), CTRL_VQ | MQ | 1 << 16);
    assert_eq!(set_pairs(&guest, 2), OK);
    let address = guest.allocate(2000);
    guest.offer(2, &[Descriptor::writable(address, 2000)]);
    let before = host.receives();
    host.fail_receives([std::io::ErrorKind::UnexpectedEof.into()]);
    host.wires[1].send(&[&[0; 12][..], &for_card(60, 1)].concat()).unwrap();
    until("it was read", || host.receives() > before);
    assert_eq!(set_pairs(&guest, 1), OK);
    assert_eq!(guest.link_status(), 1);
}
