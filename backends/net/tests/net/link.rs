//! The cable: pulled out, put in, and what the driver hears of it.

use std::io::ErrorKind;

use testkit::driver::Registers;
use virtio_backend::Operation;

use crate::guest::{CTRL_VQ, GUEST_ANNOUNCE, Guest, STATUS, for_card, from_card, until};

const UP: u8 = 1;
const ANNOUNCE: u8 = 2;

fn set_link(guest: &Guest, up: bool) {
    guest.transport.operate(Operation::Link { up }).unwrap();
}

#[test]
fn f07_a_link_that_is_down_drops_both_directions_and_comes_back_fresh() {
    let (guest, host) = Guest::new(STATUS);
    guest.post(2000);
    set_link(&guest, false);
    assert_eq!(guest.link_status(), 0);
    assert_eq!(guest.transport.acknowledge(), 2, "the driver is told by an interrupt of configuration");
    host.put(&for_card(60, 1));
    guest.wait_counter("rx_dropped_link_down", 1);
    guest.send(&from_card(60, 1));
    assert_eq!(guest.counter("tx_dropped_link_down"), 1);

    set_link(&guest, true);
    assert_eq!(guest.transport.acknowledge() & 2, 2);
    assert_eq!(guest.link_status(), UP);
    host.put(&for_card(60, 2));
    guest.wait_rx(1);
    guest.assert_alive(&host);
    assert_eq!(guest.counter("rx_dropped_link_down"), 1, "what came meanwhile is not delivered late");
}

#[test]
fn a_link_that_is_down_stays_so_over_a_reset() {
    let (mut guest, host) = Guest::new(STATUS);
    set_link(&guest, false);
    guest.restart(STATUS);
    assert_eq!(guest.link_status(), 0);
    set_link(&guest, true);
    guest.assert_alive(&host);
}

#[test]
fn spec_5_1_6_5_4_2_the_driver_is_asked_to_announce_itself_until_it_says_it_did() {
    let (mut guest, _host) = Guest::new(STATUS | CTRL_VQ | GUEST_ANNOUNCE);
    set_link(&guest, true);
    assert_eq!(guest.link_status(), UP, "nothing has changed");
    until("the driver is there to be asked", || {
        set_link(&guest, false);
        set_link(&guest, true);
        guest.link_status() == UP | ANNOUNCE
    });
    assert_eq!(guest.command(&[3, 0]), 0);
    assert_eq!(guest.link_status(), UP);

    set_link(&guest, false);
    set_link(&guest, true);
    guest.restart(STATUS | CTRL_VQ);
    assert_eq!(guest.link_status(), UP, "a reset is the end of it");
    set_link(&guest, false);
    set_link(&guest, true);
    assert_eq!(guest.link_status(), UP, "this driver does not know how to");
}

#[test]
fn f07_when_the_hosts_end_goes_the_link_is_down_and_the_card_alive() {
    let (guest, host) = Guest::new(STATUS | CTRL_VQ);
    guest.post(2000);
    host.fail_receives([ErrorKind::UnexpectedEof.into()]);
    host.put(&for_card(60, 1));
    until("the link is down", || guest.link_status() == 0);
    until("the driver is told", || guest.transport.read(testkit::driver::Register::InterruptStatus) & 2 != 0);
    set_link(&guest, false);
    set_link(&guest, true);
    assert_eq!(guest.link_status(), 0, "no operator can bring it back");
    guest.send(&from_card(60, 1));
    assert_eq!(guest.counter("tx_dropped_link_down"), 1);
    assert_eq!(guest.command(&[3, 0]), 1);
    assert!(!guest.needs_reset());
}
