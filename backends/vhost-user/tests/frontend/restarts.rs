//! A backend that dies, and one that comes in its place.

use testkit::device::eventually;
use testkit::driver::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{BUFFERS, EVENT_IDX, Guest, INDIRECT, UNTOUCHED, config};
use crate::puppet::{Character, PROTOCOL_FEATURES, Puppet, Turn, protocol, request};

const RNG: u32 = 4;
const BLOCK: u32 = 2;

fn rig(character: Character) -> (Puppet, Guest) {
    let puppet = Puppet::new(character);
    let guest = Guest::new(config(RNG, &puppet.socket()), 64);
    (puppet, guest)
}

/// Offers chains that hold a number, each in the slot of that number.
fn offer(guest: &Guest, numbers: std::ops::Range<u16>) {
    for number in numbers {
        let at = BUFFERS + 0x100 * u64::from(number);
        guest.memory.write(at, &number.to_le_bytes());
        guest.offer(0, 2 * number, &[Descriptor::readable(at, 2), Descriptor::writable(at + 0x80, 2)]);
    }
}

fn take_number(puppet: &Puppet) -> u16 {
    let taken = puppet.take(0);
    let number = u16::from_le_bytes(taken.bytes[..].try_into().unwrap());
    puppet.answer(0, &taken, &number.to_le_bytes());
    number
}

#[test]
fn what_was_not_done_is_done_by_the_next_in_its_order_and_what_was_done_is_not_done_again() {
    for ring_features in [0, INDIRECT, EVENT_IDX | INDIRECT] {
        let mut character = Character::default();
        character.features |= ring_features;
        let (puppet, guest) = rig(character);
        offer(&guest, 0..8);
        let taken: Vec<_> = (0..8).map(|_| puppet.take(0)).collect();
        for index in [5, 2] {
            puppet.answer(0, &taken[index], &(index as u16).to_le_bytes());
        }
        guest.wait_used(0, 2);
        // They come where those two were, between the others.
        offer(&guest, 8..10);
        eventually("the backend has them", || puppet.available(0) == 2);
        puppet.hang_up();

        let again: Vec<_> = (0..8).map(|_| take_number(&puppet)).collect();
        assert_eq!(again, [0, 1, 3, 4, 6, 7, 8, 9]);
        guest.wait_used(0, 10);
        for number in 0..10u16 {
            assert_eq!(guest.bytes(BUFFERS + 0x100 * u64::from(number) + 0x80, 2), number.to_le_bytes());
        }
        assert_eq!((guest.counter("losses"), guest.counter("reconnects")), (1, 1));
    }
}

#[test]
fn a_backend_that_stays_away_is_waited_for_and_requests_with_it() {
    let (puppet, guest) = rig(Character::default());
    offer(&guest, 0..2);
    puppet.take(0);
    puppet.hide();
    puppet.hang_up();
    eventually("it is looked for more than once", || guest.counter("failed_reconnects") >= 3);
    offer(&guest, 2..4);
    assert!(!guest.needs_reset());
    assert_eq!(guest.queues[0].used_idx(), 0);
    let passes = guest.counter("passes");
    let looked = guest.counter("failed_reconnects");
    eventually("it is looked for", || guest.counter("failed_reconnects") > looked);
    assert!(guest.counter("passes") <= passes + 4, "and nothing spins meanwhile");

    puppet.listen();

    assert_eq!((0..4).map(|_| take_number(&puppet)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    guest.wait_used(0, 4);
}

#[test]
fn a_backend_that_dies_at_any_point_of_its_introduction_is_waited_for() {
    use request::*;
    for point in [
        GET_FEATURES,
        GET_PROTOCOL_FEATURES,
        SET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        SET_BACKEND_REQ_FD,
        SET_FEATURES,
        SET_MEM_TABLE,
        GET_CONFIG,
        SET_VRING_NUM,
        SET_VRING_BASE,
        SET_VRING_ADDR,
        SET_VRING_CALL,
        SET_VRING_KICK,
        SET_VRING_ENABLE,
    ] {
        let puppet = Puppet::new(Character::default());
        let guest = Guest::new(config(BLOCK, &puppet.socket()), 64);
        offer(&guest, 0..3);
        assert_eq!(take_number(&puppet), 0);
        puppet.turn(point, Turn::Leaves);
        puppet.hang_up();
        let before = puppet.connections();
        eventually("it has died again", || puppet.connections() > before + 1);
        assert!(!guest.needs_reset(), "{point}");

        puppet.change(|character| character.turns.clear());

        assert_eq!([take_number(&puppet), take_number(&puppet)], [1, 2], "{point}");
        guest.wait_used(0, 3);
    }
}

#[test]
fn the_next_backend_may_have_more_and_may_acknowledge_less() {
    let (puppet, guest) = rig(Character { protocol: protocol::REPLY_ACK, ..Character::default() });
    offer(&guest, 0..2);
    take_number(&puppet);
    puppet.change(|character| {
        character.features |= 1 << 3 | EVENT_IDX | INDIRECT;
        character.protocol = 0;
    });
    puppet.hang_up();
    assert_eq!(take_number(&puppet), 1);
    puppet.change(|character| character.features &= !(PROTOCOL_FEATURES | INDIRECT));
    puppet.hang_up();
    eventually("there is a third", || puppet.connections() == 3);
    offer(&guest, 2..4);
    assert_eq!([take_number(&puppet), take_number(&puppet)], [2, 3]);
    guest.wait_used(0, 4);
}

#[test]
fn g09_a_backend_that_lacks_what_the_guest_was_offered_is_not_taken() {
    let mut character = Character::default();
    character.features |= 1 << 5;
    let (puppet, guest) = rig(character);
    offer(&guest, 0..1);
    take_number(&puppet);
    puppet.change(|character| character.features &= !(1 << 5));
    puppet.hang_up();
    guest.wait_for_fault();

    puppet.change(|character| character.features |= 1 << 5);
    guest.reset();
    offer(&guest, 0..1);
    assert_eq!(take_number(&puppet), 0);
}

#[test]
fn g09_a_backend_with_fewer_queues_is_not_taken() {
    let puppet = Puppet::new(Character::default());
    let mut two = config(BLOCK, &puppet.socket());
    two.queues = Some(2);
    let guest = Guest::new(two, 64);
    offer(&guest, 0..1);
    take_number(&puppet);
    puppet.change(|character| character.queues = 1);
    puppet.hang_up();
    guest.wait_for_fault();
}

#[test]
fn g10_a_backend_that_was_left_cannot_reach_what_the_next_one_has() {
    let (puppet, guest) = rig(Character::default());
    offer(&guest, 0..1);
    let taken = puppet.take(0);
    let former = puppet.memory();
    puppet.hang_up();
    eventually("there is another", || puppet.connections() == 2);
    let again = puppet.take(0);
    assert_eq!(again.bytes, [0, 0]);

    // The former one writes wherever it could: over the ring, the data, and what is said to be done.
    former.write_slice(&vec![0xff; 0x10_0000], GuestAddress(crate::puppet::BASE)).unwrap();
    assert_ne!(taken.buffers, []);

    guest.fill(BUFFERS + 0x80, 2, UNTOUCHED);
    puppet.answer(0, &again, b"ok");
    guest.wait_used(0, 1);
    assert_eq!(guest.bytes(BUFFERS + 0x80, 2), b"ok");
    assert!(!guest.needs_reset());
}
