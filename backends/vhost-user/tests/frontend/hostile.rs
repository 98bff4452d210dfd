//! Backends that lie: each costs its device, which a reset by the driver brings back, and nothing else.

use std::fmt::Debug;
use std::thread;

use testkit::cases;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Registers};
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{BUFFERS, Guest, UNTOUCHED, config};
use crate::puppet::{Chain, Character, Puppet, Turn, message, reply, request, wrong_answers};

const BLOCK: u32 = 2;

fn rig() -> (Puppet, Guest) {
    let puppet = Puppet::new(Character::default());
    let guest = Guest::new(config(BLOCK, &puppet.socket()), 64);
    (puppet, guest)
}

fn offer(guest: &Guest) {
    guest.fill(BUFFERS, 64, UNTOUCHED);
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 64)]);
}

/// The device needs a reset, its connection is over, and after the reset it works again.
fn assert_found_out(puppet: &Puppet, guest: &Guest) {
    guest.wait_for_fault();
    let connections = puppet.connections();
    puppet.change(|character| character.turns.clear());
    guest.reset();
    guest.offer(0, 8, &[Descriptor::writable(BUFFERS, 4)]);
    eventually("there is another connection", || puppet.connections() == connections + 1 && puppet.has_queue(0));
    puppet.answer(0, &puppet.take(0), b"abcd");
    assert_eq!(guest.wait_used(0, 1).len, 4);
    assert!(!guest.needs_reset());
}

/// A backend that has one request lies about it.
fn found_out_by(lie: impl Fn(&Puppet, &Chain)) {
    let (puppet, guest) = rig();
    offer(&guest);
    let taken = puppet.take(0);
    lie(&puppet, &taken);
    guest.wait_for_fault();
    assert_eq!(guest.queues[0].used_idx(), 0, "nothing of it reaches the guest");
    assert_eq!(guest.bytes(BUFFERS, 64), [UNTOUCHED; 64]);
    assert_found_out(&puppet, &guest);
}

/// Checks inputs, eight at a time: what takes long are the pauses before a device looks for its backend again.
fn beside_each_other<I: Debug + Send>(inputs: impl IntoIterator<Item = I>, check: impl Fn(I) + Sync) {
    const AT_A_TIME: usize = 8;
    let mut parts: Vec<Vec<I>> = (0..AT_A_TIME).map(|_| Vec::new()).collect();
    inputs.into_iter().enumerate().for_each(|(at, input)| parts[at % AT_A_TIME].push(input));
    let test = thread::current().name().unwrap_or("?").to_owned();
    thread::scope(|scope| {
        for part in parts {
            // By the name of the test its inputs are counted.
            let builder = thread::Builder::new().name(test.clone());
            builder.spawn_scoped(scope, || cases::each(part, &check)).unwrap();
        }
    });
}

#[test]
fn g09_what_is_done_was_never_given() {
    // Another of the ring's, none of it, and numbers whose low bits are right.
    let others = (0..32).map(|bit| 1 << bit).chain([63, 127, 0xffff, 0xffff_0000, u32::MAX]);
    beside_each_other(others, |id| found_out_by(|puppet, taken| puppet.done(0, u32::from(taken.head) ^ id, 64)));
}

#[test]
fn g09_what_is_done_was_done_before() {
    let (puppet, guest) = rig();
    offer(&guest);
    guest.offer(0, 1, &[Descriptor::writable(BUFFERS + 64, 64)]);
    let taken = puppet.take(0);
    puppet.take(0);
    puppet.done(0, taken.head.into(), 0);
    guest.wait_used(0, 1);
    puppet.done(0, taken.head.into(), 0);
    assert_found_out(&puppet, &guest);
}

#[test]
fn g09_the_index_jumps() {
    let jumps = (1..16).map(|bit| 1 << bit).chain([3, 127, 129, 0x7fff, 0x8001, u16::MAX]);
    beside_each_other(jumps, |index| found_out_by(|puppet, _| puppet.set_used_index(0, index)));
}

#[test]
fn g09_a_ring_that_is_scribbled_on_is_not_looked_at() {
    let (puppet, guest) = rig();
    offer(&guest);
    let taken = puppet.take(0);
    // Descriptors and the available ring: nothing of ours comes from there.
    let ring = puppet.used_ring(0) - crate::puppet::BASE;
    puppet.memory().write_slice(&vec![0xff; ring as usize], GuestAddress(crate::puppet::BASE)).unwrap();
    puppet.answer(0, &taken, b"abcd");
    assert_eq!(guest.wait_used(0, 1).len, 4);
    assert_eq!(guest.bytes(BUFFERS, 4), b"abcd");
    assert!(!guest.needs_reset());
}

#[test]
fn g09_calls_without_an_end_and_without_a_reason_change_nothing() {
    let (puppet, guest) = rig();
    offer(&guest);
    let taken = puppet.take(0);
    for _ in 0..1000 {
        puppet.set_used_index(0, 0);
    }
    puppet.answer(0, &taken, b"abcd");
    guest.wait_used(0, 1);
    assert!(!guest.needs_reset());
}

#[test]
fn g09_an_answer_before_the_question() {
    let (puppet, guest) = rig();
    offer(&guest);
    puppet.take(0);
    puppet.blurt(&reply(request::GET_VRING_BASE, 0));
    assert_found_out(&puppet, &guest);
}

#[test]
fn g09_wrong_answers_to_what_is_asked_of_every_backend() {
    use request::*;
    let questions = [
        SET_OWNER,
        SET_FEATURES,
        SET_PROTOCOL_FEATURES,
        SET_MEM_TABLE,
        SET_VRING_NUM,
        SET_VRING_BASE,
        SET_VRING_ADDR,
        SET_VRING_KICK,
        SET_VRING_CALL,
        SET_VRING_ENABLE,
        SET_BACKEND_REQ_FD,
    ];
    let inputs = questions.into_iter().flat_map(|question| {
        [Turn::Refuses].into_iter().chain(wrong_answers(question)).map(move |turn| (question, turn))
    });
    beside_each_other(inputs, |(question, turn)| {
        let (puppet, guest) = rig();
        offer(&guest);
        puppet.take(0);
        puppet.turn(question, turn);
        puppet.hang_up();
        assert_found_out(&puppet, &guest);
    });
}

#[test]
fn g09_a_configuration_space_of_another_size() {
    let (puppet, guest) = rig();
    offer(&guest);
    puppet.take(0);
    puppet.turn(request::GET_CONFIG, Turn::Says(message(request::GET_CONFIG, 5, &[0; 200])));
    puppet.say(2, false);
    assert_found_out(&puppet, &guest);
}

#[test]
fn g09_a_backend_that_hangs_when_it_is_asked_is_left_for_the_next() {
    let (puppet, guest) = rig();
    offer(&guest);
    puppet.take(0);
    puppet.turn(request::GET_CONFIG, Turn::Hangs);
    puppet.say(2, false);
    eventually("it is left", || guest.counter("losses") == 1);
    puppet.change(|character| character.turns.clear());
    puppet.answer(0, &puppet.take(0), b"abcd");
    guest.wait_used(0, 1);
    assert!(!guest.needs_reset());
}

#[test]
fn g09_a_backend_that_only_holds_requests_keeps_no_one_from_the_registers() {
    let (puppet, guest) = rig();
    offer(&guest);
    puppet.take(0);
    puppet.turn(request::GET_CONFIG, Turn::Hangs);
    puppet.say(2, false);
    // The lane waits for the answer now.
    let asked = puppet.heard(request::GET_CONFIG).len();
    eventually("it is asked", || puppet.heard(request::GET_CONFIG).len() >= asked);
    for _ in 0..1000 {
        guest.config_bytes(0, 8);
        guest.registers.notify(0);
    }
    assert_eq!(guest.counter("losses"), 0, "all that took no time");
}

#[test]
fn g09_an_answer_that_trickles_in_is_not_waited_for_without_end() {
    let (puppet, guest) = rig();
    offer(&guest);
    puppet.take(0);
    // Every byte comes in time; all of them together would not in a minute.
    puppet.turn(request::GET_CONFIG, Turn::Trickles);
    puppet.say(2, false);
    eventually("it is left", || guest.counter("losses") == 1);
    puppet.change(|character| character.turns.clear());
    puppet.answer(0, &puppet.take(0), b"abcd");
    guest.wait_used(0, 1);
}

#[test]
fn g10_all_that_a_backend_gets_is_memory_of_ours() {
    let puppet = Puppet::new(Character::default());
    let mut small = config(BLOCK, &puppet.socket());
    small.memory = Some(2 << 20);
    let guest = Guest::new(small, 64);
    guest.memory.write(BUFFERS, b"a secret of the guest's");
    guest.offer(0, 0, &[Descriptor::readable(BUFFERS + 0x1000, 16)]);
    puppet.take(0);
    assert!(puppet.memory_len() <= 2 << 20);
    let mut all = vec![0; puppet.memory_len() as usize];
    puppet.memory().read_slice(&mut all, GuestAddress(crate::puppet::BASE)).unwrap();
    assert!(!all.windows(8).any(|window| window == b"a secret"));
}
