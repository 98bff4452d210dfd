//! The driver resets the device, whatever its backend does.

use testkit::device::eventually;
use testkit::driver::{Descriptor, Register, Registers};
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{BUFFERS, Guest, UNTOUCHED, config};
use crate::puppet::{Character, Puppet, Turn, protocol, request};

const RNG: u32 = 4;

fn rig(character: Character) -> (Puppet, Guest) {
    let puppet = Puppet::new(character);
    let guest = Guest::new(config(RNG, &puppet.socket()), 64);
    (puppet, guest)
}

/// A request goes to the backend and comes back.
fn assert_alive(puppet: &Puppet, guest: &Guest) {
    let before = guest.queues[0].used_idx();
    guest.offer(0, 8, &[Descriptor::writable(BUFFERS, 4)]);
    puppet.answer(0, &puppet.take(0), b"abcd");
    assert_eq!(guest.wait_used(0, before + 1).len, 4);
    assert_eq!(guest.bytes(BUFFERS, 4), b"abcd");
    assert!(!guest.needs_reset());
}

#[test]
fn it_goes_on_with_the_same_connection_which_forgets_what_was() {
    let (puppet, guest) = rig(Character::default());
    for resets in 0..5 {
        assert_alive(&puppet, &guest);
        assert_eq!(puppet.heard(request::RESET_DEVICE).len(), resets);
        guest.reset();
    }
    assert_eq!((puppet.connections(), guest.counter("reconnects")), (1, 0));
    assert_eq!(puppet.heard(request::SET_OWNER).len(), 1);
}

#[test]
fn a_backend_that_knows_no_reset_has_its_queues_stopped_and_set_up_anew() {
    let (puppet, guest) = rig(Character { protocol: protocol::MQ, ..Character::default() });
    assert_alive(&puppet, &guest);
    guest.reset();
    assert_alive(&puppet, &guest);
    assert!(puppet.heard(request::RESET_DEVICE).is_empty());
    assert_eq!((puppet.heard(request::GET_VRING_BASE).len(), puppet.connections()), (1, 1));
}

#[test]
fn a_backend_that_does_not_acknowledge_is_kicked_when_it_has_heard_everything() {
    let (puppet, guest) = rig(Character { protocol: 0, ..Character::default() });
    assert_alive(&puppet, &guest);
    assert_eq!(puppet.requests().last(), Some(&request::GET_FEATURES), "which has an answer");
}

#[test]
fn what_the_backend_never_took_comes_back_at_once_with_nothing_written() {
    let (puppet, guest) = rig(Character::default());
    guest.fill(BUFFERS, 64, UNTOUCHED);
    for head in 0..4 {
        guest.offer(0, head, &[Descriptor::writable(BUFFERS, 64)]);
    }
    eventually("the backend has them", || puppet.available(0) == 4);

    guest.registers.reset();

    assert_eq!(guest.queues[0].used_idx(), 4);
    assert!((0..4).all(|entry| guest.queues[0].used(entry).len == 0));
    assert_eq!(guest.bytes(BUFFERS, 64), [UNTOUCHED; 64]);
    guest.bring_up();
    assert_alive(&puppet, &guest);
}

#[test]
fn what_the_backend_has_taken_it_may_still_finish() {
    let (puppet, guest) = rig(Character::default());
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 64)]);
    let taken = puppet.take(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the queue is stopped", || !puppet.heard(request::GET_VRING_BASE).is_empty());
            puppet.write(&taken, 0, b"late");
            puppet.done(0, taken.head.into(), 4);
        });
        guest.registers.reset();
    });
    assert_eq!((guest.queues[0].used_idx(), guest.queues[0].used(0).len), (1, 4));
    assert_eq!(guest.bytes(BUFFERS, 4), b"late");
}

#[test]
fn what_it_does_not_finish_is_given_up() {
    let (puppet, guest) = rig(Character::default());
    guest.fill(BUFFERS, 64, UNTOUCHED);
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 64)]);
    let taken = puppet.take(0);
    let (memory, at) = (puppet.memory(), taken.buffers[0].0);

    guest.reset();
    assert_alive(&puppet, &guest);

    // It is the memory of a time that is over.
    memory.write_slice(b"too late", GuestAddress(at)).unwrap();
    let mut seen = [0; 8];
    puppet.memory().read_slice(&mut seen, GuestAddress(at)).unwrap();
    assert_ne!(&seen, b"too late");
    assert_alive(&puppet, &guest);
}

#[test]
fn g09_a_backend_that_hangs_does_not_keep_the_driver_from_resetting() {
    let (puppet, guest) = rig(Character::default());
    guest.fill(BUFFERS, 64, UNTOUCHED);
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 64)]);
    puppet.take(0);
    puppet.turn(request::GET_VRING_BASE, Turn::Hangs);

    guest.registers.reset();

    assert_eq!((guest.queues[0].used_idx(), guest.queues[0].used(0).len), (1, 0));
    assert_eq!(guest.bytes(BUFFERS, 64), [UNTOUCHED; 64]);
    puppet.change(|character| character.turns.clear());
    guest.bring_up();
    assert_alive(&puppet, &guest);
    assert_eq!(puppet.connections(), 2);
}

#[test]
fn g09_a_backend_that_stops_what_it_was_not_asked_to_is_left() {
    for body in [[1u32, 0], [0, 0x1_0000]] {
        let (puppet, guest) = rig(Character::default());
        assert_alive(&puppet, &guest);
        let lie = crate::puppet::message(request::GET_VRING_BASE, 5, &body.map(u32::to_ne_bytes).concat());
        puppet.turn(request::GET_VRING_BASE, Turn::Says(lie));
        guest.registers.reset();
        puppet.change(|character| character.turns.clear());
        guest.bring_up();
        assert_alive(&puppet, &guest);
        assert_eq!(puppet.connections(), 2);
    }
}

#[test]
fn a_guests_fault_does_not_cost_the_connection() {
    let (puppet, guest) = rig(Character::default());
    assert_alive(&puppet, &guest);
    guest.offer(0, 0, &[Descriptor::writable(0x1000, 64)]);
    guest.wait_for_fault();
    guest.reset();
    assert_alive(&puppet, &guest);
    assert_eq!(puppet.connections(), 1, "many backends end with their only connection");
}

#[test]
fn a_reset_while_the_backend_is_away_gives_everything_back() {
    let (puppet, guest) = rig(Character::default());
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 64)]);
    puppet.take(0);
    puppet.hide();
    puppet.hang_up();
    eventually("it is missed", || guest.counter("failed_reconnects") > 0);

    guest.registers.reset();

    assert_eq!((guest.queues[0].used_idx(), guest.queues[0].used(0).len), (1, 0));
    guest.bring_up();
    puppet.listen();
    assert_alive(&puppet, &guest);
}

#[test]
fn a_queue_that_is_reset_by_itself_leaves_the_others_at_work() {
    let puppet = Puppet::new(Character::default());
    let mut net = config(1, &puppet.socket());
    net.memory = Some(6 << 20);
    let guest = Guest::new(net, 64);
    let buffer = Descriptor::writable(BUFFERS, 0x1_0000);
    for head in 0..64 {
        guest.offer(0, head, &[buffer]);
        guest.offer(1, head, &[Descriptor::readable(BUFFERS, 0x1_0000)]);
    }
    eventually("both queues are full", || guest.counter("waits_for_memory") >= 2);

    guest.registers.write(Register::QueueSel, 0);
    guest.registers.write(Register::QueueReset, 1);
    eventually("it is reset", || guest.registers.read(Register::QueueReset) == 0);

    let given_back = guest.queues[1].used_idx();
    assert!((1..64).contains(&given_back), "what the backend had, and not what is in the ring: {given_back}");
    // Without a kick.
    for done in given_back..64 {
        let taken = puppet.take(1);
        puppet.done(1, taken.head.into(), 0);
        guest.wait_used(1, done + 1);
    }
    guest.queues[0].clear();
    guest.registers.set_up_queue(0, &guest.queues[0]);
    guest.offer(0, 0, &[buffer]);
    puppet.answer(0, &puppet.take(0), b"a packet");
    assert_eq!(guest.wait_used(0, 1).len, 8);
    assert_eq!(puppet.connections(), 1);
}
