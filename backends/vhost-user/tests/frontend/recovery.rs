//! The process dies under a guest that uses a device, and another one follows, with the same connection to its backend.

use testkit::driver::Descriptor;

use crate::harness::{BUFFERS, Guest, config};
use crate::puppet::{Character, Puppet, protocol, request};

const RNG: u32 = 4;

fn rig(character: Character) -> (Puppet, Guest) {
    let puppet = Puppet::new(character);
    let guest = Guest::new(config(RNG, &puppet.socket()), 64);
    (puppet, guest)
}

fn offer(guest: &Guest, head: u16) {
    guest.offer(0, head, &[Descriptor::writable(BUFFERS + 64 * u64::from(head), 4)]);
}

#[test]
fn what_was_in_flight_goes_to_the_backend_again_and_its_connection_stays() {
    for character in [Character::default(), Character { protocol: protocol::MQ, ..Character::default() }] {
        let (puppet, mut guest) = rig(character);
        offer(&guest, 0);
        puppet.answer(0, &puppet.take(0), b"done");
        guest.wait_used(0, 1);
        offer(&guest, 1);
        offer(&guest, 2);
        drop(puppet.take(0));

        guest.kill();

        puppet.answer(0, &puppet.take(0), b"one.");
        puppet.answer(0, &puppet.take(0), b"two.");
        guest.wait_used(0, 3);
        assert_eq!((guest.bytes(BUFFERS + 64, 4), guest.bytes(BUFFERS + 128, 4)), (b"one.".to_vec(), b"two.".to_vec()));
        offer(&guest, 3);
        puppet.answer(0, &puppet.take(0), b"new.");
        guest.wait_used(0, 4);
        assert_eq!((puppet.connections(), guest.counter("reconnects")), (1, 0));
        assert_eq!(puppet.heard(request::SET_OWNER).len(), 1);
    }
}

#[test]
fn a_connection_with_an_answer_to_the_dead_process_is_ended_and_another_one_made() {
    let (puppet, mut guest) = rig(Character::default());
    offer(&guest, 0);
    puppet.answer(0, &puppet.take(0), b"done");
    guest.wait_used(0, 1);
    guest.kill_then(|| puppet.blurt(&crate::puppet::reply(request::GET_VRING_BASE, 7)));

    offer(&guest, 1);
    puppet.answer(0, &puppet.take(0), b"new.");
    guest.wait_used(0, 2);
    assert_eq!((puppet.connections(), guest.counter("reconnects")), (2, 1));
}
