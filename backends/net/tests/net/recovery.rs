//! The process dies under a driver that uses its card, and another one follows.

use testkit::driver::Registers;
use virtio_backend::Operation;
use virtio_net::Config;

use crate::guest::{
    CONTROL, CSUM, CTRL_GUEST_OFFLOADS, CTRL_VQ, GUEST_ANNOUNCE, GUEST_CSUM, GUEST_TSO4, Guest, MQ, PEER, RX, STATUS,
    TX, config, for_card, frame, from_card, until,
};

const OK: u8 = 0;
const OTHER: [u8; 6] = [0, 0x16, 0x3e, 7, 7, 7];

#[test]
fn packets_go_on_in_buffers_that_a_former_process_was_given() {
    let (mut guest, host) = Guest::new(STATUS);
    guest.post_many(4, 2000);
    host.put(&for_card(60, 1));
    guest.wait_rx(1);
    guest.send(&from_card(60, 1));
    assert_eq!(host.take().1, from_card(60, 1));

    guest.kill(&config(), host.engine());

    assert_eq!(guest.transport.acknowledge(), 3, "the driver is to look at everything");
    host.put(&for_card(60, 2));
    guest.wait_rx(2);
    guest.send(&from_card(60, 2));
    assert_eq!(host.take().1, from_card(60, 2));
    assert_eq!((guest.queues[RX].used_idx(), guest.queues[TX].used_idx()), (2, 2));
    guest.assert_alive(&host);
}

#[test]
fn what_the_driver_set_by_the_control_queue_holds() {
    let mut guest = Guest::new(CONTROL | STATUS).0;
    let mac = OTHER;
    for command in [
        vec![0, 0, 0],
        [&[1, 1][..], &mac].concat(),
        [&[1, 0, 1, 0, 0, 0][..], &PEER, &[0, 0, 0, 0]].concat(),
        vec![2, 0, 5, 0],
    ] {
        assert_eq!(guest.command(&command), OK);
    }
    let (host, engine) = crate::fake::FakeHost::new(1);

    guest.kill(&config(), engine);

    assert_eq!(guest.mac(), mac);
    guest.post_many(8, 2000);
    let tagged = |vlan: u16| [&mac[..], &PEER, &[0x81, 0], &vlan.to_be_bytes(), &[8, 0], &[0; 46]].concat();
    for (number, (packet, passes)) in [
        (frame(mac, PEER, &[0; 46]), true),
        (frame(PEER, OTHER, &[0; 46]), true),
        (for_card(60, 1), false),
        (tagged(5), true),
        (tagged(6), false),
    ]
    .into_iter()
    .enumerate()
    {
        let passed = guest.counter("rx_packets");
        host.put(&packet);
        let judged = || guest.counter("rx_packets") + guest.counter("rx_dropped_filtered");
        until("a packet is judged", || judged() == number as u64 + 1);
        assert_eq!(guest.counter("rx_packets") > passed, passes, "packet {number}");
    }
}

#[test]
fn queues_and_offloads_are_as_they_were_and_the_host_is_told() {
    let config = Config { queues: 3, ..config() };
    let features = CTRL_VQ | MQ | CSUM | GUEST_CSUM | GUEST_TSO4 | CTRL_GUEST_OFFLOADS;
    let (mut guest, _) = Guest::configured(&config, features);
    assert_eq!(guest.command(&[4, 0, 2, 0]), OK);
    assert_eq!(guest.command(&[&[5, 0][..], &GUEST_CSUM.to_le_bytes()].concat()), OK);
    let (host, engine) = crate::fake::FakeHost::new(3);

    guest.kill(&config, engine);

    until("the host is told", || (host.active(), host.offloads()) == (2, GUEST_CSUM));
    guest.restart(features);
    until("a driver begins anew", || (host.active(), host.offloads()) == (1, GUEST_CSUM | GUEST_TSO4));
}

#[test]
fn the_cable_is_as_the_operator_left_it_and_the_driver_is_still_to_announce_itself() {
    let (mut guest, host) = Guest::new(STATUS | CTRL_VQ | GUEST_ANNOUNCE);
    guest.transport.operate(Operation::Link { up: false }).unwrap();
    guest.kill(&config(), host.engine());
    assert_eq!(guest.link_status(), 0);
    assert_eq!(guest.command(&[3, 0]), OK, "the card is at work again");

    guest.transport.operate(Operation::Link { up: true }).unwrap();
    guest.kill(&config(), host.engine());
    assert_eq!(guest.link_status(), 3);
    assert_eq!(guest.command(&[3, 0]), OK);
    guest.kill(&config(), host.engine());
    assert_eq!(guest.link_status(), 1);
}
