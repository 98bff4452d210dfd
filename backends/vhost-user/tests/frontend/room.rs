//! The memory that a device has for what is in flight, and what happens when there is no more.

use testkit::device::eventually;
use testkit::driver::{Descriptor, Registers};

use crate::harness::{BUFFERS, Guest, INDIRECT, config};
use crate::puppet::{Character, Puppet};

const RNG: u32 = 4;
const NET: u32 = 1;

/// What the two devices offer of the room for data: with this memory, a chain may have a little more than that.
const ROOM: u32 = 512 << 10;

fn character() -> Character {
    let mut character = Character::default();
    character.features |= INDIRECT;
    character
}

fn rig() -> (Puppet, Guest) {
    let puppet = Puppet::new(character());
    let guest = Guest::new(config(RNG, &puppet.socket()), 64);
    (puppet, guest)
}

#[test]
fn requests_wait_for_room_and_all_are_done_in_the_end() {
    let (puppet, guest) = rig();
    let len = 100 << 10;
    for head in 0..40u16 {
        guest.memory.write(BUFFERS + 0x2_0000 * u64::from(head), &[head as u8; 4]);
        guest.offer(0, head, &[Descriptor::readable(BUFFERS + 0x2_0000 * u64::from(head), len)]);
    }
    eventually("a request waits", || guest.counter("waits_for_memory") > 0);
    let at_once = puppet.available(0);
    assert!((1..40).contains(&at_once), "{at_once}");

    for head in 0..40u16 {
        let taken = puppet.take(0);
        assert_eq!((taken.bytes.len(), taken.bytes[0]), (len as usize, head as u8), "in order");
        puppet.done(0, taken.head.into(), 0);
    }

    guest.wait_used(0, 40);
    assert!(!guest.needs_reset());
    assert_eq!(guest.counter("memory_in_use"), 0);
}

#[test]
fn a_device_without_room_does_not_spin() {
    let (puppet, guest) = rig();
    for head in 0..20u16 {
        guest.offer(0, head, &[Descriptor::readable(BUFFERS, 100 << 10)]);
    }
    eventually("a request waits", || guest.counter("waits_for_memory") > 0);
    eventually("all that there is room for is there", || puppet.available(0) >= 4);
    let waits = guest.counter("waits_for_memory");
    // A pass for each kick; none of them tries what cannot be.
    for _ in 0..100 {
        let passes = guest.counter("passes");
        guest.registers.notify(0);
        eventually("the kick makes a pass", || guest.counter("passes") > passes);
    }
    assert_eq!(guest.counter("waits_for_memory"), waits);
}

#[test]
fn a_chain_that_could_never_have_room_is_the_drivers_fault_before_anything_is_mapped() {
    let (puppet, guest) = rig();
    guest.offer(0, 0, &[Descriptor::readable(BUFFERS, 4)]);
    let taken = puppet.take(0);
    puppet.done(0, taken.head.into(), 0);
    guest.wait_used(0, 1);
    let maps = guest.memory.counts().calls;
    guest.offer(0, 0, &[Descriptor::readable(BUFFERS, 8 << 20)]);
    guest.wait_for_fault();
    assert_eq!((puppet.available(0), guest.memory.counts().calls), (0, maps));

    guest.reset();
    guest.offer(0, 0, &[Descriptor::readable(BUFFERS, ROOM)]);
    let taken = puppet.take(0);
    assert_eq!(taken.bytes.len(), ROOM as usize);
    puppet.done(0, taken.head.into(), 0);
    guest.wait_used(0, 1);
}

#[test]
fn a_queue_that_is_full_for_ever_takes_nothing_from_the_others() {
    let puppet = Puppet::new(character());
    let mut config = config(NET, &puppet.socket());
    config.memory = Some(6 << 20);
    let guest = Guest::new(config, 256);
    for head in 0..256u16 {
        guest.offer(0, head, &[Descriptor::writable(BUFFERS, 0x1_0000)]);
    }
    eventually("receive buffers wait for room", || guest.counter("waits_for_memory") > 0);

    for round in 0..200u16 {
        guest.offer(1, 0, &[Descriptor::readable(BUFFERS, 0x1_0000)]);
        let taken = puppet.take(1);
        puppet.done(1, taken.head.into(), 0);
        guest.wait_used(1, round + 1);
    }

    let taken = puppet.take(0);
    puppet.answer(0, &taken, b"a packet");
    assert_eq!(guest.wait_used(0, 1).len, 8);
}

#[test]
fn without_tables_a_chain_waits_for_descriptors() {
    let puppet = Puppet::new(Character::default());
    let guest = Guest::new(config(RNG, &puppet.socket()), 64);
    // Each a table of 20 in the guest, and 20 descriptors of 64 with the backend.
    let table: Vec<_> = (0..20u16)
        .map(|slot| {
            let buffer = Descriptor::readable(BUFFERS + 0x1000 * u64::from(slot), 16);
            if slot < 19 { buffer.then(slot + 1) } else { buffer }
        })
        .collect();
    for head in 0..8u16 {
        let indirect = guest.queues[0].write_indirect(BUFFERS + 0x10_0000 + 0x1000 * u64::from(head), &table);
        guest.offer(0, head, &[indirect]);
    }
    eventually("a chain waits", || guest.counter("waits_for_memory") > 0);
    eventually("three are there", || puppet.available(0) == 3);
    for _ in 0..8 {
        let taken = puppet.take(0);
        assert_eq!((taken.by_table, taken.buffers.len()), (false, 20));
        puppet.done(0, taken.head.into(), 0);
    }
    guest.wait_used(0, 8);
}
