//! A device whose guest grants what it passes to it: what is offered, what it costs, and that a driver finds its pages
//! free at the moment it learns that the device is done.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::thread;

use guest_memory::{Access, Sources};
use rig::granting::{FEATURES, Granting, LARGE, Lent, SIZE, SMALL};
use rig::{Pending, RAM, VERSION_1};
use testkit::device::{Behaviour, eventually};
use testkit::driver::{ACCESS_PLATFORM, Descriptor, RawQueue, Register, Registers};
use virtio_backend::Fault;

#[test]
fn spec_6_platform_access_is_offered_where_grants_are_reached_and_required_where_nothing_else_is() {
    type Reach = fn(testkit::memory::FakeForeignMemory, testkit::grants::FakeGrants) -> Sources;
    let frames: Reach = |memory, _| memory.into();
    let both: Reach = |memory, grants| Sources::from(memory).with_grants(grants);
    let grants_only: Reach = |_, grants| Sources::grants(grants);
    for (sources, is_offered, is_required) in [(frames, false, false), (both, true, false), (grants_only, true, true)] {
        let guest = || Granting::reaching(Behaviour::Echo, sources);
        let offered = guest().rig.registers.offered_features();
        assert_eq!(offered & ACCESS_PLATFORM != 0, is_offered);
        assert_eq!(guest().rig.registers.negotiate(VERSION_1 | ACCESS_PLATFORM), is_offered);
        assert_eq!(guest().rig.registers.negotiate(VERSION_1), !is_required);
    }
}

#[test]
fn a_device_works_by_grants_alone_and_maps_no_frame() {
    let (guest, queue) = Granting::running(Behaviour::Echo);
    for _ in 0..100 {
        guest.assert_works(&queue);
    }
    assert_eq!(guest.rig.memory.counts().calls, 0);
    guest.rig.registers.reset();
    let (counts, stats) = (guest.grants.counts(), guest.rig.cache.stats());
    assert_eq!((counts.live, counts.pages), (0, 0));
    assert_eq!((stats.grant_maps, stats.grant_unmaps), (counts.maps, counts.maps));
    assert_eq!((stats.grant_copies, stats.grants_refused), (counts.copies, 0));
    assert_eq!((stats.bytes_mapped, stats.busy), (0, 0));
}

#[test]
fn a_chain_may_name_some_of_its_memory_by_frames_and_some_by_grants() {
    let guest = Granting::reaching(Behaviour::Echo, |memory, grants| Sources::from(memory).with_grants(grants));
    // So may a ring: the available ring alone is granted.
    let plain = RawQueue::new(guest.rig.memory.clone(), RAM, SIZE);
    let registers = &guest.rig.registers;
    assert!(registers.negotiate(FEATURES));
    registers.set_up_queue(1, &guest.rig.queue(1));
    registers.write(Register::QueueSel, 0);
    registers.write_address(Register::QueueDescLow, Register::QueueDescHigh, plain.desc_table());
    registers.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, guest.queue().avail_ring());
    registers.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, plain.used_ring());
    registers.write(Register::QueueReady, 1);
    registers.add_status(testkit::driver::status::DRIVER_OK);

    let sent: Vec<u8> = (0..=250).cycle().take(2 * (SMALL + LARGE)).collect();
    let by_frame = |lent: Lent| Lent { granted: lent.address, ..lent };
    let place = |nth: u64, len, access| {
        let lent = guest.lend(nth, len, access);
        if nth.is_multiple_of(2) { by_frame(lent) } else { lent }
    };
    let lens = [SMALL, LARGE, LARGE, SMALL];
    let sources: Vec<_> = (0..).zip(lens).map(|(nth, len)| place(nth, len, Access::Read)).collect();
    let targets: Vec<_> = (4..).zip(lens).map(|(nth, len)| place(nth, len, Access::Write)).collect();
    let mut rest = &sent[..];
    for source in &sources {
        let (part, tail) = rest.split_at(source.len);
        guest.rig.memory.write(source.address, part);
        rest = tail;
    }
    let chain: Vec<Descriptor> =
        sources.iter().map(|lent| lent.readable()).chain(targets.iter().map(|lent| lent.writable())).collect();
    guest.offer(&plain, &chain);

    assert_eq!(plain.wait_used(1).len as usize, sent.len());
    assert!(targets.iter().flat_map(|target| guest.bytes(*target)).eq(sent));
}

#[test]
fn a_pass_over_many_small_requests_copies_once_in_and_once_out() {
    let guest = Granting::new(Behaviour::Echo);
    let queue = guest.queue();
    guest.publish_many(&queue, 30, SMALL);
    guest.start(&queue);
    queue.wait_used(30);
    let counts = guest.grants.counts();
    assert_eq!((counts.copies, counts.pieces, counts.maps), (2, 60, 3));
}

#[test]
fn a_large_request_is_mapped_once_each_way_and_a_small_one_not_at_all() {
    let (guest, queue) = Granting::running(Behaviour::Echo);
    guest.publish_many(&queue, 3, LARGE);
    guest.rig.registers.notify(0);
    queue.wait_used(3);
    assert_eq!((guest.grants.counts().maps, guest.grants.counts().copies), (3 + 2 * 3, 0));
}

#[test]
fn what_is_copied_and_what_is_mapped_shows_in_the_order_it_was_done_in() {
    let (guest, queue) = Granting::running(Behaviour::Echo);
    for (nth, len) in (0..8).zip([SMALL, LARGE].into_iter().cycle()) {
        let (source, target) = (guest.lend_bytes(2 * nth, &[7]), guest.lend(2 * nth + 1, len, Access::Write));
        guest.publish(&queue, u16::try_from(nth).unwrap() * 2, &[source.readable(), target.writable()]);
    }
    guest.rig.registers.notify(0);
    queue.wait_used(8);
    let order: Vec<_> = (0..8).map(|index| queue.used(index).id).collect();
    assert_eq!(order, [0, 2, 4, 6, 8, 10, 12, 14]);
}

/// With indirect tables, several requests in flight, and more made available while the device looks: a table must be
/// there when its chain is walked.
#[test]
fn a_driver_that_takes_its_pages_back_the_moment_it_can_finds_none_in_use() {
    const IN_FLIGHT: u16 = 4;
    let (guest, queue) = Granting::running(Behaviour::Echo);
    // As a disk's request, with a status behind its data: some of it is mapped, and some copied.
    let submit = |slot: u16, len: usize| {
        let place = 3 * u64::from(slot);
        let (source, target) = (guest.lend_bytes(place, &vec![0x5a; len]), guest.lend(place + 1, len, Access::Write));
        let status = guest.lend(place + 2, 1, Access::Write);
        let chain = [source.readable(), target.writable(), status.writable()];
        let (table, lent) = guest.lend_table(slot.into(), &queue, &chain);
        guest.publish(&queue, slot, &[table]);
        guest.rig.registers.notify(0);
        [lent, source, target, status]
    };
    let mut lent: Vec<_> = (0..IN_FLIGHT).map(|slot| submit(slot, SMALL)).collect();
    for done in 0..3000_u16 {
        eventually("a request is done", || queue.used_idx() != done);
        let slot = u16::try_from(queue.used(done).id).unwrap();
        lent[usize::from(slot)].into_iter().for_each(|lent| guest.take_back(lent));
        lent[usize::from(slot)] = submit(slot, if done % 3 == 0 { LARGE } else { SMALL });
    }
    assert!(!guest.is_broken());
}

#[test]
fn invalidations_concern_no_grant() {
    let (guest, queue) = Granting::running(Behaviour::Echo);
    let mut rounds = 0;
    thread::scope(|scope| {
        let storm = scope.spawn(|| {
            for _ in 0..2000 {
                guest.rig.cache.invalidate();
                guest.rig.registers.release_memory();
                guest.rig.cache.sweep();
            }
        });
        while rounds == 0 || !storm.is_finished() {
            guest.assert_works(&queue);
            rounds += 1;
        }
    });
    assert_eq!(guest.rig.cache.stats().invalidations, 2000);
    assert_eq!(guest.grants.counts().maps, 3 + rounds * 4, "the rings once, and two buffers of two requests each time");
}

/// A way for a device to come to an end.
type End = fn(&Granting) -> Pending;

fn ends() -> [(&'static str, End); 5] {
    [
        ("reset", |guest| guest.rig.begin(Register::Status, 0)),
        ("a queue reset", |guest| {
            guest.rig.registers.write(Register::QueueSel, 0);
            guest.rig.begin(Register::QueueReset, 1)
        }),
        ("QueueReady", |guest| {
            guest.rig.registers.write(Register::QueueSel, 0);
            guest.rig.begin(Register::QueueReady, 0)
        }),
        ("removal", |guest| guest.rig.registers.stop().into()),
        ("a fault", |guest| {
            guest.rig.signals().needs_reset(&Fault::Bug("as told".into()));
            guest.rig.begin(Register::Status, 0)
        }),
    ]
}

#[test]
fn c12_nothing_is_mapped_after_an_end_with_requests_held_and_others_fetched() {
    for (what, end) in ends() {
        let guest = Granting::new(Behaviour::HoldOne);
        let queue = guest.queue();
        let lent = guest.publish_many(&queue, 5, LARGE);
        guest.start(&queue);
        guest.wait_held();
        assert_eq!(guest.grants.counts().live, 3 + 2 * 5, "the rings, and all that was fetched");

        let ended = end(&guest);
        guest.rig.device.gate.open();
        ended.wait();
        if what == "a queue reset" {
            eventually("the queue is reset", || guest.rig.registers.read(Register::QueueReset) == 0);
        }

        assert_eq!(guest.grants.counts().live, 0, "after {what}");
        lent.into_iter().for_each(|lent| guest.take_back(lent));
        guest.grants.end_access(queue.desc_table(), queue.bytes()).unwrap();
        assert_eq!((guest.grants.counts().granted, queue.used_idx()), (0, 1), "after {what}");
    }
}

#[test]
fn c18_a_queue_that_was_reset_works_again_with_other_grants() {
    let (guest, mut queue) = Granting::running(Behaviour::Echo);
    for _ in 0..10 {
        guest.assert_works(&queue);
        guest.rig.registers.write(Register::QueueSel, 0);
        guest.rig.registers.write(Register::QueueReset, 1);
        eventually("the queue is reset", || guest.rig.registers.read(Register::QueueReset) == 0);
        guest.grants.end_access(queue.desc_table(), queue.bytes()).unwrap();
        queue = guest.queue();
        guest.rig.registers.set_up_queue(0, &queue);
    }
}
