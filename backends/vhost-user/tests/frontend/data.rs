//! What becomes of a request's bytes on their way to the backend and back.

use testkit::cases;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Way};

use crate::harness::{BUFFERS, EVENT_IDX, Guest, INDIRECT, UNTOUCHED, config, pattern};
use crate::puppet::{Character, Puppet};

/// A device without configuration space and with one queue.
const RNG: u32 = 4;

fn rig(ring_features: u64) -> (Puppet, Guest) {
    rig_by(Way::Frames, ring_features)
}

/// The same, with a device that reaches the guest's memory by `way`.
fn rig_by(way: Way, ring_features: u64) -> (Puppet, Guest) {
    let mut character = Character::default();
    character.features |= ring_features;
    let puppet = Puppet::new(character);
    let guest = Guest::by(way, config(RNG, &puppet.socket()), 64);
    (puppet, guest)
}

/// Buffers at places of their own.
fn buffers(lengths: &[(u32, bool)]) -> Vec<Descriptor> {
    let places = lengths.iter().enumerate().map(|(index, length)| (BUFFERS + 0x2_0000 * index as u64 + 7, *length));
    let descriptors = places.map(|(at, (len, writable))| match writable {
        true => Descriptor::writable(at, len),
        false => Descriptor::readable(at, len),
    });
    descriptors.collect()
}

#[test]
fn each_descriptor_of_the_guest_is_one_for_the_backend() {
    let lengths =
        [(16, false), (1, false), (4096, false), (70_000, false), (512, true), (511, true), (70_000, true), (1, true)];
    let ring_features = [0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX];
    for (way, ring_features) in Way::ALL.into_iter().flat_map(|way| ring_features.map(|features| (way, features))) {
        let (puppet, guest) = rig_by(way, ring_features);
        let chain = buffers(&lengths);
        let mut readable = Vec::new();
        for (seed, buffer) in (1..).zip(&chain[..4]) {
            let bytes = pattern(buffer.len as usize, seed);
            guest.memory.write(buffer.addr, &bytes);
            readable.extend(bytes);
        }

        guest.offer(0, 0, &chain);
        let taken = puppet.take(0);

        let cut: Vec<_> = taken.buffers.iter().map(|(_, len, writable)| (*len, *writable)).collect();
        assert_eq!(cut, lengths);
        assert_eq!(taken.by_table, ring_features & INDIRECT != 0);
        assert!(taken.bytes == readable);
        for (address, len, _) in taken.buffers {
            assert!(len < 512 || address % 4096 == 0, "{len} bytes at {address:#x}");
        }
    }
}

#[test]
fn what_the_backend_writes_comes_back_in_every_piece() {
    Way::ALL.into_iter().for_each(write_every_piece);
}

fn write_every_piece(way: Way) {
    let (puppet, guest) = rig_by(way, INDIRECT);
    let chain = buffers(&[(3, false), (10, true), (5000, true), (600, true)]);
    guest.offer(0, 0, &chain);
    let taken = puppet.take(0);
    let bytes = pattern(5610, 9);
    puppet.answer(0, &taken, &bytes);

    assert_eq!(guest.wait_used(0, 1).len, 5610);

    let got: Vec<_> = chain[1..].iter().flat_map(|buffer| guest.bytes(buffer.addr, buffer.len as usize)).collect();
    assert!(got == bytes);
    assert_eq!((guest.counter("bytes_in"), guest.counter("bytes_out")), (3, 5610));
}

#[test]
fn what_the_backend_did_not_write_is_left_as_it_was() {
    let (puppet, guest) = rig(0);
    let chain = buffers(&[(1000, true)]);
    guest.fill(chain[0].addr, 1000, UNTOUCHED);
    guest.offer(0, 0, &chain);
    let taken = puppet.take(0);
    puppet.write(&taken, 0, &[1; 1000]);
    puppet.write(&taken, 992, &[2; 8]);
    puppet.done(0, taken.head.into(), 100);

    assert_eq!(guest.wait_used(0, 1).len, 100);

    let end = [2; 8];
    assert_eq!(guest.bytes(chain[0].addr, 1000), [&[1; 100][..], &[UNTOUCHED; 892], &end].concat());
}

#[test]
fn a_status_at_the_end_comes_back_though_the_backend_did_not_count_it() {
    let (puppet, guest) = rig(0);
    let chain = buffers(&[(16, false), (4096, true), (1, true)]);
    guest.fill(chain[1].addr, 4096, UNTOUCHED);
    guest.fill(chain[2].addr, 1, UNTOUCHED);
    guest.offer(0, 0, &chain);
    let taken = puppet.take(0);
    puppet.write(&taken, 4096, &[1]);
    puppet.done(0, taken.head.into(), 0);

    assert_eq!(guest.wait_used(0, 1).len, 0);

    assert_eq!(guest.bytes(chain[1].addr, 4096), [UNTOUCHED; 4096]);
    assert_eq!(guest.bytes(chain[2].addr, 1), [1]);
}

#[test]
fn a_backend_that_writes_nothing_changes_nothing() {
    let (puppet, guest) = rig(0);
    let chain = buffers(&[(4, true), (4, true)]);
    for buffer in &chain {
        guest.fill(buffer.addr, 4, UNTOUCHED);
    }
    guest.offer(0, 0, &chain);
    let taken = puppet.take(0);
    puppet.done(0, taken.head.into(), 0);
    guest.wait_used(0, 1);
    for buffer in &chain {
        assert_eq!(guest.bytes(buffer.addr, 4), [UNTOUCHED; 4]);
    }
}

#[test]
fn g09_what_a_backend_says_it_wrote_is_believed_as_far_as_there_is_room() {
    let (puppet, guest) = rig(0);
    let shapes: [&[(u32, bool)]; 6] = [
        &[(100, true)],
        &[(4, false), (100, true)],
        &[(1, true), (98, true), (1, true)],
        &[(0, true), (100, true), (0, true)],
        &[(4, false), (3, false)],
        &[(0, false), (0, true)],
    ];
    let lens = [0, 1, 50, 91, 92, 93, 99, 100, 101, 4096, 0x1_0000, 0x8000_0000, u32::MAX];
    let mut count = 0;
    cases::each(shapes.into_iter().flat_map(|shape| lens.map(|len| (shape, len))), |(shape, len)| {
        let chain = buffers(shape);
        let writable: Vec<_> = chain.iter().filter(|buffer| buffer.is_writable()).collect();
        writable.iter().for_each(|buffer| guest.fill(buffer.addr, buffer.len as usize, UNTOUCHED));
        let room = writable.iter().map(|buffer| buffer.len).sum::<u32>();
        guest.offer(0, 0, &chain);
        let taken = puppet.take(0);
        puppet.write(&taken, 0, &vec![5; room as usize]);
        puppet.done(0, taken.head.into(), len);

        count += 1;
        let told = len.min(room);
        assert_eq!(guest.wait_used(0, count).len, told);
        let written: Vec<u8> =
            writable.iter().flat_map(|buffer| guest.bytes(buffer.addr, buffer.len as usize)).collect();
        // Where a status may be, at the end, what was written comes back though it was not counted.
        let comes_back = |at: u32| at < told || at + 8 >= room;
        let expected: Vec<u8> = (0..room).map(|at| if comes_back(at) { 5 } else { UNTOUCHED }).collect();
        assert_eq!(written, expected);
        assert!(!guest.needs_reset());
    });
}

#[test]
fn requests_come_back_in_the_order_in_which_they_are_done() {
    Way::ALL.into_iter().for_each(answer_out_of_order);
}

fn answer_out_of_order(way: Way) {
    let (puppet, guest) = rig_by(way, EVENT_IDX);
    for head in 0..8 {
        guest.offer(0, head, &[Descriptor::writable(BUFFERS + 64 * u64::from(head), 4)]);
    }
    let taken: Vec<_> = (0..8).map(|_| puppet.take(0)).collect();
    for index in [3usize, 0, 7, 1, 2, 6, 5, 4] {
        puppet.answer(0, &taken[index], &(index as u32).to_le_bytes());
    }
    guest.wait_used(0, 8);
    let order: Vec<_> = (0..8).map(|entry| guest.queues[0].used(entry).id).collect();
    assert_eq!(order, [3, 0, 7, 1, 2, 6, 5, 4]);
    for head in 0..8u32 {
        assert_eq!(guest.bytes(BUFFERS + 64 * u64::from(head), 4), head.to_le_bytes());
    }
}

#[test]
fn the_backend_is_kicked_for_what_it_has_not_seen() {
    let (puppet, guest) = rig(0);
    guest.offer(0, 0, &[Descriptor::writable(BUFFERS, 4)]);
    eventually("the chain is there", || puppet.available(0) == 1);
    eventually("the kick is there", || puppet.kicks(0) > 0);
    assert!(guest.counter("backend_kicks") > 0);
    puppet.answer(0, &puppet.take(0), b"abcd");
    guest.wait_used(0, 1);
    assert!(guest.counter("backend_calls") > 0);
}

#[test]
fn many_requests_go_round_many_times() {
    Way::ALL.into_iter().for_each(go_round_many_times);
}

fn go_round_many_times(way: Way) {
    let (puppet, guest) = rig_by(way, EVENT_IDX | INDIRECT);
    let mut count = 0u16;
    for round in 0..300u32 {
        for head in 0..16u16 {
            let at = BUFFERS + 0x100 * u64::from(head);
            guest.memory.write(at, &(round ^ u32::from(head)).to_le_bytes());
            guest.offer(0, 2 * head, &[Descriptor::readable(at, 4), Descriptor::writable(at + 0x80, 4)]);
        }
        for _ in 0..16 {
            let taken = puppet.take(0);
            let bytes = taken.bytes.clone();
            puppet.answer(0, &taken, &bytes);
        }
        count = count.wrapping_add(16);
        guest.wait_used(0, count);
        for head in 0..16u16 {
            let at = BUFFERS + 0x100 * u64::from(head);
            assert_eq!(guest.bytes(at + 0x80, 4), (round ^ u32::from(head)).to_le_bytes());
        }
    }
    assert_eq!(guest.counter("memory_in_use"), 0);
}
