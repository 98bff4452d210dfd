//! Configuration space: the backend's, a little of it ours, and no access waits for anybody.

use testkit::cases;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Register, Registers};

use crate::harness::{BUFFERS, Guest, config};
use crate::puppet::{Character, Puppet, Turn, protocol, request};

const BLOCK: u32 = 2;
const FS: u32 = 26;
const CONFIG_CHANGED: u32 = 2;

/// A guest whose backend has its queues.
fn rig(character: Character) -> (Puppet, Guest) {
    let puppet = Puppet::new(character);
    let guest = Guest::new(config(BLOCK, &puppet.socket()), 64);
    eventually("the backend has its queue", || puppet.has_queue(0));
    (puppet, guest)
}

#[test]
fn the_guest_reads_what_the_backend_says_but_for_queues_and_what_fits_them() {
    let (puppet, guest) = rig(Character { config: (0..60).collect(), ..Character::default() });
    let mut expected: Vec<u8> = (0..60).collect();
    expected[12..16].copy_from_slice(&[254, 0, 0, 0]);
    expected[34..36].copy_from_slice(&[1, 0]);
    assert_eq!(guest.config_bytes(0, 60), expected);
    assert_eq!(guest.config_bytes(60, 4), [0; 4]);
    let asked = puppet.heard(request::GET_CONFIG);
    assert!(asked.iter().all(|question| question[..12] == [0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0]), "whole, from 0");
}

#[test]
fn a_change_is_seen_and_told_by_either_way_of_saying_so() {
    for wants_reply in [true, false] {
        let (puppet, guest) = rig(Character::default());
        puppet.change(|character| character.config = vec![9; 60]);
        let answer = puppet.say(CONFIG_CHANGED, wants_reply);
        assert_eq!(answer, wants_reply.then_some(0));
        eventually("the guest is told", || guest.is_told_of_config());
        assert_eq!(guest.config_bytes(0, 8), [9; 8]);
        assert_eq!(guest.counter("config_changes"), 1);
    }
}

#[test]
fn what_is_the_same_is_not_told() {
    let (puppet, guest) = rig(Character::default());
    let asked = puppet.heard(request::GET_CONFIG).len();
    puppet.say(CONFIG_CHANGED, true);
    eventually("it is looked at", || puppet.heard(request::GET_CONFIG).len() > asked);
    puppet.say(CONFIG_CHANGED, true);
    eventually("it is looked at again", || puppet.heard(request::GET_CONFIG).len() > asked + 1);
    assert!(!guest.is_told_of_config());
}

#[test]
fn g09_half_a_message_of_the_backends_holds_nothing_up() {
    let (puppet, guest) = rig(Character::default());
    puppet.say_raw(&[2, 0, 0, 0, 1, 0]);
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 4)]);
    puppet.answer(0, &puppet.take(0), b"abcd");
    guest.wait_used(0, 1);
    puppet.change(|character| character.config = vec![9; 60]);
    puppet.say_raw(&[0, 0, 0, 0, 0, 0]);
    eventually("the guest is told", || guest.is_told_of_config());
}

#[test]
fn g09_a_flood_of_changes_costs_nothing_but_the_time_to_hear_it() {
    let (puppet, guest) = rig(Character::default());
    let change = [CONFIG_CHANGED, 1, 0].map(u32::to_ne_bytes).concat();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| (0..2000).for_each(|_| puppet.say_raw(&change.repeat(100))));
        let mut count = 0;
        while !flood.is_finished() {
            count += 1;
            guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 4)]);
            puppet.answer(0, &puppet.take(0), b"abcd");
            guest.wait_used(0, count);
        }
    });
    assert!(!guest.needs_reset());
    guest.reset();
}

#[test]
fn g10_what_the_backend_asks_for_on_its_own_is_refused() {
    let (puppet, guest) = rig(Character::default());
    // IOTLB, host notifiers, shared objects and maps, and whatever there will be.
    let requests =
        (0..32).filter(|request| *request != CONFIG_CHANGED).chain((5..32).map(|bit| 1 << bit)).chain([u32::MAX]);
    cases::each(requests, |request| assert_eq!(puppet.say(request, true), Some(1)));
    assert!(!guest.needs_reset());
}

#[test]
fn what_the_driver_writes_the_backend_hears_exactly() {
    let (puppet, guest) = rig(Character::default());
    guest.registers.store(Register::Config as u64 + 32, 1, 1);
    assert_eq!(guest.config_bytes(32, 1), [1], "at once");
    eventually("the backend hears", || !puppet.heard(request::SET_CONFIG).is_empty());
    assert_eq!(puppet.heard(request::SET_CONFIG)[0], [32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(puppet.heard(request::SET_CONFIG).len(), 1);
}

#[test]
fn what_the_driver_wrote_the_next_backend_hears_and_the_next_driver_does_not_say() {
    let (puppet, guest) = rig(Character::default());
    guest.registers.store(Register::Config as u64 + 32, 1, 1);
    eventually("the backend hears", || puppet.heard(request::SET_CONFIG).len() == 1);
    puppet.hang_up();
    eventually("the next one hears", || puppet.heard(request::SET_CONFIG).len() == 2);
    eventually("it has its queue", || puppet.has_queue(0));
    guest.reset();
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 4)]);
    puppet.take(0);
    assert_eq!(puppet.heard(request::SET_CONFIG).len(), 2);
}

#[test]
fn a_write_that_the_backend_refuses_is_counted_and_costs_nothing_else() {
    let mut character = Character::default();
    character.turns.insert(request::SET_CONFIG, Turn::Refuses);
    let (puppet, guest) = rig(character);
    guest.registers.store(Register::Config as u64, 4, 1);
    eventually("it is refused", || guest.counter("refused_config_writes") == 1);
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 4)]);
    puppet.answer(0, &puppet.take(0), b"abcd");
    guest.wait_used(0, 1);
}

#[test]
fn the_name_of_a_file_system_can_be_ours() {
    for features in [protocol::ALL, protocol::ALL & !protocol::CONFIG] {
        let puppet = Puppet::new(Character { protocol: features, ..Character::default() });
        let mut config = config(FS, &puppet.socket());
        config.tag = Some("share".into());
        let guest = Guest::new(config, 64);
        let name = [&b"share"[..], &[0; 31], &[1, 0, 0, 0]].concat();
        assert_eq!(guest.config_bytes(0, 40), name, "and one request queue");
    }
}
