//! What a driver may offer, and what it should not.

use testkit::driver::Descriptor;

use crate::harness::{BUFFERS, EVENT_IDX, Mood, Rig, UNTOUCHED, VERSION_1, eventually, random};

#[test]
fn spec_5_4_6_2_a_buffer_gets_at_least_a_byte_and_only_random_ones() {
    let rig = Rig::new(Mood::Gives(3));
    rig.memory.write(BUFFERS, &[UNTOUCHED; 16]);

    let used = rig.run(&[Descriptor::writable(BUFFERS, 16)]);

    assert_eq!(used.len, 3);
    assert_eq!(rig.bytes(BUFFERS, 16), [&random(3)[..], &[UNTOUCHED; 13]].concat());
    assert_eq!(rig.counter("bytes"), 3);
}

#[test]
fn a_buffer_in_several_places_is_filled_in_order() {
    let rig = Rig::new(Mood::Gives(usize::MAX));

    let places = [(BUFFERS + 0x3ff0, 40), (BUFFERS, 1), (BUFFERS + 0x8000, 23)];
    let used = rig.run(&places.map(|(address, len)| Descriptor::writable(address, len)));

    assert_eq!(used.len, 64);
    let bytes = places.map(|(address, len)| rig.bytes(address, len as usize)).concat();
    assert_eq!(bytes, random(64));
}

#[test]
fn what_a_full_queue_asks_for_is_given() {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let rig = Rig::with(Mood::Gives(usize::MAX), Default::default(), features);
        for round in 1..=3 {
            for head in 0..64 {
                rig.queue.write_chain(head, &[Descriptor::writable(BUFFERS + 0x1_0000 * u64::from(head), 0x1_0000)]);
                rig.queue.publish(head);
            }
            rig.kick();
            rig.queue.wait_used(round * 64);
        }
        assert_eq!(rig.counter("bytes"), 3 * 64 * 0x1_0000);
        assert_eq!(rig.bytes(BUFFERS + 0x3f_0000, 0x1_0000), random(0x1_0000));
        rig.assert_alive();
    }
}

#[test]
fn g05_a_buffer_of_4_gib_is_refused_before_anything_is_mapped_or_drawn() {
    for len in [u32::MAX, 0x1_0001] {
        let rig = Rig::new(Mood::Gives(usize::MAX));

        rig.offer(0, &[Descriptor::writable(BUFFERS, len)]);

        eventually("the device asks for a reset", || rig.needs_reset());
        assert_eq!((rig.source.asked(), rig.queue.used_idx()), (0, 0));
        rig.reset();
        rig.assert_alive();
    }
}

#[test]
fn g05_many_buffers_of_a_chain_count_together() {
    let rig = Rig::new(Mood::Gives(usize::MAX));
    let whole = [Descriptor::writable(BUFFERS, 0x8000), Descriptor::writable(BUFFERS, 0x8000)];
    assert_eq!(rig.run(&whole).len, 0x1_0000);

    rig.offer(0, &[whole[0], whole[1], Descriptor::writable(BUFFERS, 1)]);

    eventually("the device asks for a reset", || rig.needs_reset());
}

#[test]
fn g05_a_chain_without_a_writable_byte_comes_back_empty() {
    let rig = Rig::new(Mood::Gives(usize::MAX));
    rig.memory.write(BUFFERS, b"guest");

    let used = rig.run(&[Descriptor::readable(BUFFERS, 5)]);

    assert_eq!((used.len, rig.source.asked()), (0, 0));
    assert_eq!(rig.bytes(BUFFERS, 5), b"guest");
    rig.assert_alive();
}

#[test]
fn g05_readable_bytes_before_the_buffer_are_passed_over() {
    let rig = Rig::new(Mood::Gives(usize::MAX));
    rig.memory.write(BUFFERS, b"guest");

    let used = rig.run(&[Descriptor::readable(BUFFERS, 5), Descriptor::writable(BUFFERS + 0x100, 9)]);

    assert_eq!(used.len, 9);
    assert_eq!(rig.bytes(BUFFERS, 5), b"guest");
    assert_eq!(rig.bytes(BUFFERS + 0x100, 9), random(9));
}

#[test]
fn g05_a_buffer_outside_of_memory_costs_the_device_a_reset_and_nothing_else() {
    let rig = Rig::new(Mood::Gives(usize::MAX));

    rig.offer(0, &[Descriptor::writable(0x1000, 64)]);

    eventually("the device asks for a reset", || rig.needs_reset());
    rig.reset();
    rig.assert_alive();
}
