//! What virtio 1.2 wants of a device with its rings. Each test is of the section that it is named by.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;

use guest_memory::{Access, Budget, MapCache, Sources};
use testkit::cases::each;
use testkit::driver::{Descriptor, RawQueue};
use testkit::grants::FakeGrants;
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Ring, RingSetup};

const BASE: u64 = 0x4000_0000;
const SIZE: u16 = 8;
/// What the device reads, and what it writes, in pieces that lie apart.
const READABLE: u64 = BASE + 0x1_0000;
const WRITABLE: u64 = BASE + 0x2_0000;
const TABLE: u64 = BASE + 0x3_0000;
/// Bytes of each.
const LEN: u32 = 24;
const TEXT: &[u8; LEN as usize] = b"what the driver has said";

struct Rig {
    memory: FakeForeignMemory,
    cache: Arc<MapCache>,
    queue: RawQueue,
}

impl Rig {
    fn new() -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
        let cache = MapCache::new(memory.clone(), Budget::default());
        let queue = RawQueue::new(memory.clone(), BASE, SIZE);
        Self { memory, cache, queue }
    }

    fn setup(&self) -> RingSetup {
        RingSetup { max_size: 1 << 15, ..self.queue.ring_setup() }
    }

    fn ring(&self) -> Ring {
        Ring::new(&self.setup(), &self.cache).unwrap()
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes);
        bytes
    }

    /// Offers these descriptors as the chain of head 0.
    fn offer(&self, chain: &[Descriptor]) {
        self.queue.write_chain(0, chain);
        self.queue.publish(0);
    }

    /// Puts a chain into a table.
    fn table(&self, chain: &[Descriptor]) -> Descriptor {
        let linked: Vec<_> = (1..).zip(chain).map(|(next, descriptor)| descriptor.then(next)).collect();
        let linked: Vec<_> = linked.iter().take(chain.len() - 1).chain(chain.last()).copied().collect();
        self.queue.write_indirect(TABLE, &linked)
    }
}

/// How a chain reaches its device.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Direct,
    Indirect,
    /// The first descriptor in the queue's own table, the others behind it in one of theirs.
    Mixed,
    /// The same, and the descriptor of the table says that it is writable.
    MixedAndMarked,
}

const LAYOUTS: [Layout; 4] = [Layout::Direct, Layout::Indirect, Layout::Mixed, Layout::MixedAndMarked];

/// A part of [`LEN`] bytes from `address` on, cut in two. A piece may be empty.
fn cut(address: u64, at: u32, piece: fn(u64, u32) -> Descriptor) -> [Descriptor; 2] {
    [piece(address, at), piece(address + u64::from(at), LEN - at)]
}

/// Offers a request that is cut like this, has it answered, and finds it whole on both sides.
fn assert_is_whole(readable_cut: u32, writable_cut: u32, layout: Layout) {
    let rig = Rig::new();
    rig.memory.write(READABLE, TEXT);
    let [first, second] = cut(READABLE, readable_cut, Descriptor::readable);
    let [third, fourth] = cut(WRITABLE, writable_cut, Descriptor::writable);
    match layout {
        Layout::Direct => rig.offer(&[first, second, third, fourth]),
        Layout::Indirect => rig.offer(&[rig.table(&[first, second, third, fourth])]),
        Layout::Mixed => rig.offer(&[first, rig.table(&[second, third, fourth])]),
        Layout::MixedAndMarked => {
            let table = rig.table(&[second, third, fourth]);
            let marked = Descriptor { flags: table.flags | Descriptor::writable(0, 0).flags, ..table };
            rig.offer(&[first, marked]);
        }
    }
    let mut ring = rig.ring();

    let request = ring.pop().unwrap().unwrap();
    let mut heard = [0; LEN as usize];
    assert_eq!((request.readable.read(0, &mut heard), &heard), (LEN as usize, TEXT));
    let answer = TEXT.map(|byte| byte.to_ascii_uppercase());
    assert_eq!(request.writable.write(0, &answer), LEN as usize);
    ring.push(request, LEN as usize).unwrap();
    ring.publish().unwrap();

    assert_eq!((rig.bytes(WRITABLE, LEN as usize), rig.queue.used(0).len), (answer.to_vec(), LEN));
}

#[test]
fn spec_2_7_4_1_a_request_is_the_same_however_it_is_cut() {
    let cuts = (0..=LEN).step_by(3).flat_map(|readable| (0..=LEN).step_by(3).map(move |writable| (readable, writable)));
    let inputs = cuts.flat_map(|(readable, writable)| LAYOUTS.map(|layout| (readable, writable, layout)));
    each(inputs, |(readable, writable, layout)| assert_is_whole(readable, writable, layout));
}

#[test]
fn spec_2_7_5_3_2_a_table_may_come_behind_normal_descriptors_and_say_that_it_is_writable() {
    let behind = (0..SIZE - 1).flat_map(|normal| [(normal, false), (normal, true)]);
    each(behind, |(normal, is_marked)| {
        let rig = Rig::new();
        rig.memory.write(READABLE, TEXT);
        let table = rig.table(&[Descriptor::readable(READABLE, LEN), Descriptor::writable(WRITABLE, LEN)]);
        let mark = if is_marked { Descriptor::writable(0, 0).flags } else { 0 };
        let mut chain = vec![Descriptor::readable(READABLE, 1); normal.into()];
        chain.push(Descriptor { flags: table.flags | mark, ..table });
        rig.offer(&chain);

        let request = rig.ring().pop().unwrap().unwrap();

        let lens = (request.readable.len(), request.writable.len());
        assert_eq!(lens, (usize::from(normal) + LEN as usize, LEN as usize));
    });
}

#[test]
fn spec_2_7_5_1_what_is_the_drivers_stays_as_it_was() {
    each([Layout::Direct, Layout::Indirect], |layout| {
        let rig = Rig::new();
        rig.memory.write(READABLE, TEXT);
        let chain = [Descriptor::readable(READABLE, LEN), Descriptor::writable(WRITABLE, LEN)];
        match layout {
            Layout::Direct => rig.offer(&chain),
            _ => rig.offer(&[rig.table(&chain)]),
        }
        let drivers_part = usize::try_from(rig.queue.used_ring() - BASE).unwrap();
        let all = || [rig.bytes(BASE, drivers_part), rig.bytes(READABLE, 0x1_0000), rig.bytes(TABLE, 0x1_0000)];
        let before = all();
        let mut ring = rig.ring();

        let request = ring.pop().unwrap().unwrap();
        // As much as it can, and more than there is room for.
        assert_eq!(request.writable.write(0, &[0xff; 100]), LEN as usize);
        ring.push(request, usize::MAX).unwrap();
        ring.publish().unwrap();

        assert!(all() == before);
        let behind = rig.bytes(WRITABLE + u64::from(LEN), 0x1000);
        assert!(behind.iter().all(|byte| *byte == 0));
    });
}

/// What is granted in small pieces is copied, and each piece is counted.
#[test]
fn spec_2_7_5_1_what_the_device_is_to_write_is_not_read() {
    let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
    let grants = FakeGrants::new(memory.clone());
    let cache = MapCache::new(Sources::grants(grants.clone()).copying_up_to(4096), Budget::default());
    let queue = RawQueue::new(memory.clone(), BASE, SIZE);
    let bytes = queue.bytes();
    let rig = Rig { memory, cache, queue: queue.at(grants.grant(BASE, bytes, Access::Write)) };
    let readable = Descriptor::readable(grants.grant(READABLE, LEN as usize, Access::Read), LEN);
    let writable = Descriptor::writable(grants.grant(WRITABLE, LEN as usize, Access::Write), LEN);
    rig.offer(&[readable, writable]);
    let mut ring = rig.ring();

    let request = ring.pop().unwrap().unwrap();

    assert_eq!(grants.counts().pieces, 1);
    ring.push(request, 0).unwrap();
    ring.publish().unwrap();
    assert_eq!(grants.counts().pieces, 1, "and nothing is written of which the device wrote nothing");
}

#[test]
fn spec_2_7_8_1_bytes_and_element_are_there_before_the_index_shows_them() {
    each(0..=LEN, |written| {
        let rig = Rig::new();
        rig.offer(&[Descriptor::writable(WRITABLE, LEN)]);
        let mut ring = rig.ring();
        let request = ring.pop().unwrap().unwrap();
        let answer = TEXT.get(..written as usize).unwrap();
        request.writable.write(0, answer);

        ring.push(request, answer.len()).unwrap();

        let element = rig.queue.used(0);
        assert_eq!((rig.queue.used_idx(), element.id, element.len), (0, 0, written));
        assert_eq!(rig.bytes(WRITABLE, answer.len()), answer);
        ring.publish().unwrap();
        assert_eq!(rig.queue.used_idx(), 1);
    });
}

#[test]
fn spec_2_7_10_2_flags_say_whether_kicks_are_wanted_and_with_event_index_nothing() {
    each([(false, 1), (true, 0)], |(event_idx, during)| {
        let rig = Rig::new();
        rig.offer(&[Descriptor::writable(WRITABLE, LEN)]);
        let mut ring = Ring::new(&RingSetup { event_idx, ..rig.setup() }, &rig.cache).unwrap();
        assert_eq!(rig.queue.used_flags(), 0);
        let mut seen = None;
        ring.serve(|ring, request| {
            seen = Some(rig.queue.used_flags());
            ring.push(request, 0)
        })
        .unwrap();
        ring.publish().unwrap();
        assert_eq!(seen, Some(during));
    });
}

#[test]
fn spec_2_7_a_size_is_a_power_of_two_within_the_maximum_and_at_most_32768() {
    let around = (0..16).map(|shift| 1u16 << shift).flat_map(|power| [power - 1, power, power.wrapping_add(1)]);
    let maxima = [1u16, 128, 1 << 15];
    each(around.flat_map(|size| maxima.map(|max_size| (size, max_size))), |(size, max_size)| {
        let rig = Rig::new();
        let (desc_table, avail_ring, used_ring) = (BASE, BASE + 0x8_0000, BASE + 0xa_0000);
        let setup = RingSetup { size, max_size, desc_table, avail_ring, used_ring, ..rig.setup() };
        assert_eq!(Ring::new(&setup, &rig.cache).is_ok(), size.is_power_of_two() && size <= max_size);
    });
}

#[test]
fn spec_2_7_each_area_has_its_alignment() {
    each((0..32).flat_map(|offset| [(offset, 0, 0), (0, offset, 0), (0, 0, offset)]), |(table, avail, used)| {
        let rig = Rig::new();
        let good = rig.setup();
        let setup = RingSetup {
            desc_table: BASE + 0x1000 + table,
            avail_ring: BASE + 0x2000 + avail,
            used_ring: BASE + 0x3000 + used,
            ..good
        };
        let is_aligned = table % 16 == 0 && avail % 2 == 0 && used % 4 == 0;
        assert_eq!(Ring::new(&setup, &rig.cache).is_ok(), is_aligned);
    });
}
