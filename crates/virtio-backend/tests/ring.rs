//! A ring as a device works it, against queues written by hand.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;

use guest_memory::{Budget, MapCache};
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::{Failure, FakeForeignMemory};
use virtio_backend::{Fault, GuestFault, Ring, RingPosition, RingSetup};

const BASE: u64 = 0x4000_0000;
const SIZE: u16 = 8;
const BUFFERS: u64 = BASE + 0x1_0000;

struct Rig {
    memory: FakeForeignMemory,
    cache: Arc<MapCache>,
    queue: RawQueue,
}

impl Rig {
    fn new() -> Self {
        Self::with_budget(Budget::default())
    }

    fn with_budget(budget: Budget) -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
        let cache = MapCache::new(memory.clone(), budget);
        let queue = RawQueue::new(memory.clone(), BASE, SIZE);
        Self { memory, cache, queue }
    }

    fn setup(&self) -> RingSetup {
        RingSetup { max_size: 256, ..self.queue.ring_setup() }
    }

    fn ring(&self) -> Ring {
        Ring::new(&self.setup(), &self.cache).unwrap()
    }

    /// Offers a chain of one readable and one writable buffer.
    fn offer(&self, head: u16) {
        let buffers = [Descriptor::readable(BUFFERS, 16), Descriptor::writable(BUFFERS + 0x1000, 32)];
        self.queue.write_chain(head, &buffers);
        self.queue.publish(head);
    }
}

fn is_setup_fault(fault: Result<Ring, Fault>) -> bool {
    matches!(fault, Err(Fault::Guest(GuestFault::Setup(_) | GuestFault::Ring(_))))
}

#[test]
fn a_request_carries_both_parts_and_goes_back_with_its_length() {
    let rig = Rig::new();
    rig.memory.write(BUFFERS, b"from the driver!");
    rig.offer(2);
    let mut ring = rig.ring();

    let request = ring.pop().unwrap().unwrap();
    let mut text = [0; 16];
    assert_eq!((request.head(), request.readable.read(0, &mut text)), (2, 16));
    assert_eq!(&text, b"from the driver!");
    request.writable.write(0, b"back");
    ring.push(request, 4).unwrap();
    assert_eq!(rig.queue.used_idx(), 0, "shown when the pass ends");
    ring.publish().unwrap();

    let used = rig.queue.used(0);
    assert_eq!((used.id, used.len, rig.queue.used_idx()), (2, 4, 1));
    assert!(ring.pop().unwrap().is_none());
    assert_eq!(ring.position(), RingPosition { next_avail: 1, next_used: 1 });
}

#[test]
fn no_more_bytes_are_reported_than_there_was_room_for() {
    let rig = Rig::new();
    rig.offer(0);
    let mut ring = rig.ring();
    let request = ring.pop().unwrap().unwrap();
    ring.push(request, usize::MAX).unwrap();
    assert_eq!(rig.queue.used(0).len, 32);
}

#[test]
fn an_unpopped_request_comes_again() {
    let rig = Rig::new();
    rig.offer(0);
    rig.offer(2);
    let mut ring = rig.ring();
    let request = ring.pop().unwrap().unwrap();
    ring.unpop(request);
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(ring.pop().unwrap().unwrap().head(), 0);
    assert_eq!(ring.pop().unwrap().unwrap().head(), 2);
}

#[test]
fn a_head_in_flight_is_not_taken_again_until_it_was_given_back() {
    let rig = Rig::new();
    rig.offer(0);
    let mut ring = rig.ring();
    let first = ring.pop().unwrap().unwrap();
    rig.queue.publish(0);
    assert!(matches!(ring.pop(), Err(Fault::Guest(GuestFault::Chain { head: 0, .. }))));
    ring.push(first, 0).unwrap();

    let mut again = rig.ring();
    assert_eq!(again.pop().unwrap().unwrap().head(), 0);
}

#[test]
fn a_request_of_another_ring_is_our_bug() {
    let rig = Rig::new();
    rig.offer(0);
    let request = rig.ring().pop().unwrap().unwrap();
    assert!(matches!(rig.ring().push(request, 0), Err(Fault::Bug(_))));
}

#[test]
fn a_ring_that_cannot_be_is_refused() {
    let rig = Rig::new();
    let good = rig.setup();
    for wrong in [
        RingSetup { size: 0, ..good },
        RingSetup { size: 12, ..good },
        RingSetup { size: 512, ..good },
        RingSetup { desc_table: good.desc_table + 8, ..good },
        RingSetup { avail_ring: good.avail_ring + 1, ..good },
        RingSetup { used_ring: good.used_ring + 2, ..good },
        RingSetup { desc_table: 0x1000, ..good },
        RingSetup { used_ring: u64::MAX - 3, ..good },
    ] {
        assert!(is_setup_fault(Ring::new(&wrong, &rig.cache)), "{wrong:?}");
    }
}

#[test]
fn d12_event_fields_outside_of_memory_are_found_at_setup() {
    let rig = Rig::new();
    let end = BASE + (1 << 20);
    // The ring proper ends with the memory; the event field lies behind it.
    let avail_ring = end - (4 + 2 * u64::from(SIZE));
    assert!(is_setup_fault(Ring::new(&RingSetup { avail_ring, ..rig.setup() }, &rig.cache)));
    let used_ring = end - (4 + 8 * u64::from(SIZE));
    assert!(is_setup_fault(Ring::new(&RingSetup { used_ring, ..rig.setup() }, &rig.cache)));
}

#[test]
fn a_chain_that_describes_too_much_maps_nothing() {
    let rig = Rig::new();
    rig.queue.write_chain(0, &[Descriptor::writable(BUFFERS, u32::MAX)]);
    rig.queue.publish(0);
    let mut ring = rig.ring();
    let calls = rig.memory.counts().calls;
    assert!(matches!(ring.pop(), Err(Fault::Guest(GuestFault::Chain { .. }))));
    assert_eq!(rig.memory.counts().calls, calls);
}

/// QEMU gives vhost-user disks queues of 128, and Linux fills tables for them as for 256.
#[test]
fn an_indirect_table_may_be_longer_than_the_queue_but_not_than_the_largest() {
    let rig = Rig::new();
    let mut ring = rig.ring();
    let offer = |descriptors| {
        let mut table: Vec<_> = (1..descriptors).map(|next| Descriptor::readable(BUFFERS, 16).then(next)).collect();
        table.push(Descriptor::readable(BUFFERS, 16));
        rig.queue.write_chain(0, &[rig.queue.write_indirect(BUFFERS + 0x1000, &table)]);
        rig.queue.publish(0);
    };

    offer(256);
    let request = ring.pop().unwrap().unwrap();
    assert_eq!(request.readable.len(), 256 * 16);
    ring.push(request, 0).unwrap();

    offer(257);
    let refused = format!("{:?}", ring.pop().err());
    assert!(refused.contains("more descriptors"), "{refused}");
}

#[test]
fn b05_the_host_failing_to_map_is_not_the_guests_fault() {
    let rig = Rig::new();
    rig.offer(0);
    let mut ring = rig.ring();
    rig.memory.fail_map(1, Failure::Errno(5));
    assert!(matches!(ring.pop(), Err(Fault::Host { .. })));
}

#[test]
fn b06_a_request_that_finds_no_room_is_put_off_and_comes_whole_later() {
    let rig = Rig::with_budget(Budget { kept: 1 << 17, at_most: 1 << 17 });
    // Two chunks are all there is room for: one for the rings, one for the first request.
    rig.queue.write_chain(0, &[Descriptor::writable(BASE + 0x2_0000, 64)]);
    rig.queue.publish(0);
    rig.queue.write_chain(1, &[Descriptor::writable(BASE + 0x4_0000, 64)]);
    rig.queue.publish(1);
    let mut ring = rig.ring();

    let first = ring.pop().unwrap().unwrap();
    assert!(ring.pop().unwrap().is_none(), "no room");
    ring.push(first, 0).unwrap();
    let second = ring.pop().unwrap().unwrap();

    assert_eq!((second.head(), second.writable.len()), (1, 64));
}

#[test]
fn serving_takes_all_there_is_with_kicks_off() {
    let rig = Rig::new();
    rig.offer(0);
    rig.offer(2);
    let mut ring = rig.ring();
    let mut served = Vec::new();

    ring.serve(|ring, request| {
        served.push(request.head());
        if served.len() == 2 {
            // The driver does not kick now, so this one must be found without.
            rig.offer(4);
        }
        ring.push(request, 0)
    })
    .unwrap();

    assert_eq!(served, [0, 2, 4]);
    assert_eq!(rig.queue.used_flags(), 1, "until the pass ends");
}

#[test]
fn d18_a_pass_takes_no_more_than_the_queue_holds() {
    let rig = Rig::new();
    rig.offer(0);
    let mut ring = rig.ring();
    let mut served = 0;
    ring.serve(|ring, request| {
        served += 1;
        ring.push(request, 0)?;
        // A driver that refills as fast as it is served.
        rig.queue.publish(0);
        Ok(())
    })
    .unwrap();
    assert_eq!(served, SIZE);
}

#[test]
fn an_idle_ring_has_nothing_and_says_nothing() {
    let rig = Rig::new();
    let mut ring = Ring::idle(&rig.cache);
    assert!(ring.pop().unwrap().is_none());
    ring.serve(|_, _| panic!("served")).unwrap();
    assert_eq!((ring.size(), ring.in_flight()), (0, 0));
}

#[test]
fn b04_a_ring_whose_entries_are_ballooned_out_is_at_fault_and_not_taken_for_empty() {
    let rig = Rig::new();
    let mut setup = rig.setup();
    // The index is the last word of a page, the entries begin on the next.
    setup.avail_ring = BASE + 0x2_0ffc;
    let mut ring = Ring::new(&setup, &rig.cache).unwrap();
    assert!(ring.pop().unwrap().is_none());
    rig.memory.store(setup.avail_ring + 2, 1u16);
    rig.memory.balloon_out(BASE + 0x2_1000, 1);
    rig.cache.invalidate();
    assert!(matches!(ring.pop(), Err(Fault::Guest(GuestFault::Unreadable(_)))));
}

#[test]
fn b04_a_ring_follows_its_pages_when_the_guest_exchanges_them() {
    let rig = Rig::new();
    rig.offer(0);
    let mut ring = rig.ring();
    let request = ring.pop().unwrap().unwrap();
    ring.push(request, 0).unwrap();

    let mut page = vec![0; 4096];
    rig.memory.read(BASE, &mut page);
    rig.memory.replace(BASE, &page);
    rig.cache.invalidate();
    rig.offer(2);

    assert_eq!(ring.pop().unwrap().unwrap().head(), 2, "seen in the new page");
    rig.cache.sweep();
}
