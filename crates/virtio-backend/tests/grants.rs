//! A ring whose driver grants what it puts there: what is fetched at once, what waits, and who is at fault.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::thread;

use guest_memory::{Access, AccessError, Budget, MapCache, Sources};
use testkit::driver::{Descriptor, RawQueue};
use testkit::grants::{FakeGrants, GRANT, GrantFailure};
use testkit::memory::{Failure, FakeForeignMemory};
use virtio_backend::{Fault, GuestFault, Ring, RingSetup};

const BASE: u64 = 0x4000_0000;
const SIZE: u16 = 16;
const BUFFERS: u64 = BASE + 0x1_0000;
const TABLES: u64 = BASE + 0x8_0000;

struct Rig {
    memory: FakeForeignMemory,
    grants: FakeGrants,
    cache: Arc<MapCache>,
    queue: RawQueue,
}

impl Rig {
    fn new() -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
        let grants = FakeGrants::new(memory.clone());
        let cache = MapCache::new(Sources::grants(grants.clone()).copying_up_to(4096), Budget::default());
        let queue = RawQueue::new(memory.clone(), BASE, SIZE);
        let bytes = queue.bytes();
        let queue = queue.at(grants.grant(BASE, bytes, Access::Write));
        Self { memory, grants, cache, queue }
    }

    fn setup(&self) -> RingSetup {
        RingSetup { max_size: 512, ..self.queue.ring_setup() }
    }

    fn ring(&self) -> Ring {
        Ring::new(&self.setup(), &self.cache).unwrap()
    }

    /// Grants a buffer in the `nth` place, for reading.
    fn readable(&self, nth: u64, len: u32) -> Descriptor {
        let len_here = usize::try_from(len).unwrap();
        Descriptor::readable(self.grants.grant(BUFFERS + nth * 0x1000, len_here, Access::Read), len)
    }

    fn offer(&self, head: u16, chain: &[Descriptor]) {
        self.queue.write_chain(head, chain);
        self.queue.publish(head);
    }

    /// Offers a chain in a table, which is granted.
    fn offer_table(&self, head: u16, table: &[Descriptor]) {
        let address = TABLES + u64::from(head) * 0x4000;
        let descriptor = self.queue.write_indirect(address, table);
        let addr = self.grants.grant(address, 16 * table.len(), Access::Read);
        self.offer(head, &[Descriptor { addr, ..descriptor }]);
    }
}

/// `len` descriptors of one byte, linked.
fn long_table(byte: Descriptor, len: u16) -> Vec<Descriptor> {
    (1..len).map(|next| byte.then(next)).chain([byte]).collect()
}

#[test]
fn what_is_fetched_waits_in_its_order_and_counts_as_not_taken() {
    let rig = Rig::new();
    for nth in 0..5_u8 {
        rig.memory.write(BUFFERS + u64::from(nth) * 0x1000, &[nth]);
        rig.offer(nth.into(), &[rig.readable(nth.into(), 1)]);
    }
    let mut ring = rig.ring();
    let calls = rig.grants.counts().calls();
    let first = ring.pop().unwrap().unwrap();
    assert_eq!((first.head(), ring.position().next_avail, ring.in_flight()), (0, 1, 1));
    let second = ring.pop().unwrap().unwrap();
    assert_eq!(ring.position().next_avail, 2);
    ring.unpop(second);
    assert_eq!((ring.position().next_avail, ring.in_flight()), (1, 1));

    let heads: Vec<_> = std::iter::from_fn(|| ring.pop().unwrap())
        .map(|request| {
            let mut byte = [0xff];
            assert_eq!(request.readable.read(0, &mut byte), 1);
            assert_eq!(u16::from(byte[0]), request.head());
            request.head()
        })
        .collect();
    assert_eq!(heads, [1, 2, 3, 4]);
    assert_eq!((rig.grants.counts().calls() - calls, ring.position().next_avail), (1, 5));
}

#[test]
fn tables_and_small_pieces_of_all_chains_are_copied_with_a_call_each() {
    let rig = Rig::new();
    for head in 0..4 {
        let byte = rig.readable(0, 1);
        rig.offer_table(head, &[byte.then(1), byte]);
    }
    let mut ring = rig.ring();
    let requests: Vec<_> = std::iter::from_fn(|| ring.pop().unwrap()).collect();
    assert_eq!(requests.iter().map(|request| request.readable.len()).collect::<Vec<_>>(), [2; 4]);
    let counts = rig.grants.counts();
    assert_eq!((counts.copies, counts.pieces), (2, 4 + 8));
}

#[test]
fn a_granted_table_may_lie_in_several_pages_and_be_longer_than_the_queue() {
    let rig = Rig::new();
    rig.offer_table(0, &long_table(rig.readable(0, 1), 512));
    let mut ring = rig.ring();
    let request = ring.pop().unwrap().unwrap();
    assert_eq!(request.readable.len(), 512);
    ring.push(request, 0).unwrap();

    rig.offer_table(1, &long_table(rig.readable(0, 1), 513));
    let refused = format!("{:?}", ring.pop().err());
    assert!(refused.contains("more descriptors"), "{refused}");
}

#[test]
fn chains_before_one_that_is_wrong_are_served_first() {
    let rig = Rig::new();
    rig.offer(0, &[rig.readable(0, 1)]);
    rig.offer(1, &[rig.readable(1, 5000)]);
    rig.offer(2, &[Descriptor::readable(GRANT | 1 << 30, 5000)]);
    let mut ring = rig.ring();
    let served = [ring.pop().unwrap().unwrap(), ring.pop().unwrap().unwrap()];
    assert_eq!(served.each_ref().map(|request| request.head()), [0, 1]);
    let refused = ring.pop();
    assert!(
        matches!(
            refused,
            Err(Fault::Guest(GuestFault::Memory { head: 2, source: AccessError::Refused { reference: 0x4_0000 } }))
        ),
        "{refused:?}"
    );
}

#[test]
fn d10_a_head_that_is_offered_twice_at_once_is_found_out() {
    let rig = Rig::new();
    rig.offer(0, &[rig.readable(0, 1)]);
    rig.queue.publish(0);
    let mut ring = rig.ring();
    let _first = ring.pop().unwrap().unwrap();
    assert!(matches!(ring.pop(), Err(Fault::Guest(GuestFault::Chain { head: 0, .. }))));
}

#[test]
fn d09_an_index_that_jumps_is_found_out_by_a_ring_that_looks_ahead() {
    let rig = Rig::new();
    rig.queue.set_avail_idx(SIZE + 1);
    assert!(matches!(rig.ring().pop(), Err(Fault::Guest(GuestFault::Ring(_)))));
}

#[test]
fn d14_chains_that_change_under_the_look_ahead_break_nothing_but_their_device() {
    let rig = Rig::new();
    let byte = rig.readable(0, 1);
    rig.offer_table(0, &[byte.then(1), byte]);
    let plain_looking = Descriptor::indirect(BUFFERS, 32);
    thread::scope(|scope| {
        let other_vcpu = scope.spawn(|| {
            let good = Descriptor::indirect(rig.grants.grant(TABLES, 32, Access::Read), 32);
            for changed in [good, plain_looking, Descriptor { len: 1 << 20, ..good }, byte].iter().cycle().take(100_000)
            {
                rig.queue.write_descriptor(0, *changed);
            }
        });
        while !other_vcpu.is_finished() {
            let mut ring = rig.ring();
            match ring.pop() {
                Ok(request) => assert!((1..=2).contains(&request.unwrap().readable.len())),
                Err(fault) => assert!(matches!(fault, Fault::Guest(_)), "{fault:?}"),
            }
        }
    });
    assert_eq!(rig.grants.counts().live, 0);
}

#[test]
fn b05_the_host_failing_to_reach_a_grant_is_not_the_guests_fault() {
    for failure in [GrantFailure::Busy, GrantFailure::Errno(5)] {
        for nth in 1..=3 {
            let rig = Rig::new();
            rig.grants.fail_call(nth, failure);
            assert!(matches!(Ring::new(&rig.setup(), &rig.cache), Err(Fault::Host { .. })), "{failure:?} {nth}");
            assert_eq!(rig.grants.counts().live, 0);
        }
    }
    // Tables, what is mapped, what is copied.
    for nth in 1..=3 {
        let rig = Rig::new();
        rig.offer_table(0, &[rig.readable(0, 1).then(1), rig.readable(1, 5000)]);
        let mut ring = rig.ring();
        rig.grants.fail_call(nth, GrantFailure::Errno(5));
        assert!(matches!(ring.pop(), Err(Fault::Host { .. })), "{nth}");
    }
}

#[test]
fn b05_a_host_that_cannot_map_a_ring_of_frames_is_not_the_guests_fault() {
    let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
    let cache = MapCache::new(memory.clone(), Budget::default());
    for failure in [Failure::Busy, Failure::Errno(5)] {
        memory.fail_map(1, failure);
        let rig = Rig::new();
        let setup = RingSetup { desc_table: BASE, avail_ring: BASE + 0x100, used_ring: BASE + 0x200, ..rig.setup() };
        assert!(matches!(Ring::new(&setup, &cache), Err(Fault::Host { .. })), "{failure:?}");
    }
}

#[test]
fn b06_a_batch_that_finds_no_room_comes_whole_later() {
    for nth in 1..=3 {
        let rig = Rig::new();
        rig.offer_table(0, &[rig.readable(0, 1).then(1), rig.readable(1, 5000)]);
        rig.offer(1, &[rig.readable(2, 1)]);
        let mut ring = rig.ring();
        rig.grants.fail_call(nth, GrantFailure::Busy);
        assert!(ring.pop().unwrap().is_none(), "no room");
        assert_eq!((ring.position().next_avail, rig.grants.counts().live), (0, 3));
        let heads: Vec<_> = std::iter::from_fn(|| ring.pop().unwrap()).map(|request| request.head()).collect();
        assert_eq!(heads, [0, 1]);
    }
}

#[test]
fn b11_a_ring_says_what_is_wrong_with_where_it_lies() {
    let rig = Rig::new();
    let frames_only = MapCache::new(rig.memory.clone(), Budget::default());
    let outcome = Ring::new(&rig.setup(), &frames_only).err();
    assert!(
        matches!(outcome, Some(Fault::Guest(GuestFault::Unreachable(AccessError::NoGrantSource { .. })))),
        "{outcome:?}"
    );
    let plain = RingSetup { used_ring: BASE + 0x200, ..rig.setup() };
    let outcome = Ring::new(&plain, &rig.cache).err();
    assert!(
        matches!(outcome, Some(Fault::Guest(GuestFault::Unreachable(AccessError::GrantsOnly { .. })))),
        "{outcome:?}"
    );
    rig.grants.revoke(rig.queue.desc_table(), rig.queue.bytes());
    let outcome = Ring::new(&rig.setup(), &rig.cache).err();
    assert!(matches!(outcome, Some(Fault::Guest(GuestFault::Unreachable(AccessError::Refused { .. })))), "{outcome:?}");
}

#[test]
fn a_ring_that_goes_takes_along_what_it_fetched() {
    let rig = Rig::new();
    for head in 0..4 {
        rig.offer(head, &[rig.readable(4 * u64::from(head), 9000)]);
    }
    let mut ring = rig.ring();
    let request = ring.pop().unwrap().unwrap();
    assert_eq!(rig.grants.counts().live, 3 + 4);
    drop(ring);
    assert_eq!(rig.grants.counts().live, 1, "what was handed out");
    drop(request);
    assert_eq!(rig.grants.counts().live, 0);
}
