//! All descriptor tables of a small queue, against what virtio 1.2 §2.7.5 says a chain is.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test reports by panicking")]

use std::collections::BTreeSet;

use guest_memory::{Budget, MapCache};
use testkit::cases;
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Fault, GuestFault, Ring, RingSetup};

const BASE: u64 = 0x4000_0000;
const SIZE: u16 = 4;
const BUFFERS: u64 = BASE + 0x1_0000;
const TABLE: u64 = BASE + 0x2_0000;

/// What a descriptor may be; its place in the table says how long its buffer is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Last {
        writable: bool,
    },
    Leads {
        writable: bool,
        to: u16,
    },
    /// To a table of one readable and one writable buffer.
    Indirect,
}

/// Every kind there is, those that lead out of the table included.
fn kinds() -> Vec<Kind> {
    let last = [false, true].map(|writable| Kind::Last { writable });
    let leads = [false, true].into_iter().flat_map(|writable| (0..=SIZE).map(move |to| Kind::Leads { writable, to }));
    last.into_iter().chain(leads).chain([Kind::Indirect]).collect()
}

impl Kind {
    /// Lengths are different powers of two, so that a sum tells which buffers there are.
    fn descriptor(self, place: u16) -> Descriptor {
        let buffer = |writable| {
            let make = if writable { Descriptor::writable } else { Descriptor::readable };
            make(BUFFERS + 0x100 * u64::from(place), 1 << place)
        };
        match self {
            Self::Last { writable } => buffer(writable),
            Self::Leads { writable, to } => buffer(writable).then(to),
            Self::Indirect => Descriptor::indirect(TABLE, 32),
        }
    }
}

/// The bytes of the readable and of the writable part, if the chain that starts at `head` is one.
fn chain(table: [Kind; SIZE as usize], head: u16) -> Option<(usize, usize)> {
    let mut seen = BTreeSet::new();
    let mut buffers = Vec::new();
    let mut next = Some(head);
    while let Some(place) = next {
        let kind = table.get(usize::from(place)).filter(|_| seen.insert(place))?;
        let len = 1 << place;
        next = match *kind {
            Kind::Last { writable } => {
                buffers.push((writable, len));
                None
            }
            Kind::Leads { writable, to } => {
                buffers.push((writable, len));
                Some(to)
            }
            Kind::Indirect => {
                buffers.extend([(false, 16), (true, 32)]);
                None
            }
        };
    }
    // All that is readable comes before all that is writable.
    let sum = |wanted| buffers.iter().filter(|(writable, _)| *writable == wanted).map(|(_, len)| len).sum();
    buffers.is_sorted_by_key(|(writable, _)| *writable).then(|| (sum(false), sum(true)))
}

#[test]
fn spec_2_7_5_every_table_of_four_descriptors_gives_the_chain_that_it_describes_or_a_fault() {
    let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
    let cache = MapCache::new(memory.clone(), Budget::default());
    let queue = RawQueue::new(memory, BASE, SIZE);
    queue.write_indirect(TABLE, &[Descriptor::readable(BUFFERS, 16).then(1), Descriptor::writable(BUFFERS, 32)]);
    queue.set_avail_idx(1);
    // With an indirect table a chain may have more descriptors than the queue has.
    let setup = RingSetup { max_size: 2 * SIZE, ..queue.ring_setup() };
    let mut ring = Ring::new(&setup, &cache).unwrap();
    let kinds = kinds();
    let tables = (0..kinds.len().pow(SIZE.into()))
        .map(|number| [0, 1, 2, 3].map(|place| kinds[number / kinds.len().pow(place) % kinds.len()]));
    let mut sound = 0;

    cases::each(tables, |table| {
        (0..SIZE).for_each(|place| queue.write_descriptor(place, table[usize::from(place)].descriptor(place)));
        for head in 0..=SIZE {
            queue.set_avail_entry(0, head);
            match (ring.pop(), chain(table, head)) {
                (Ok(Some(request)), Some(expected)) => {
                    assert_eq!(
                        (request.head(), request.readable.len(), request.writable.len()),
                        (head, expected.0, expected.1)
                    );
                    ring.unpop(request);
                    sound += 1;
                }
                (Err(Fault::Guest(GuestFault::Chain { head: told, .. })), None) => assert_eq!(told, head),
                (Err(fault), expected) => panic!("chain {head}: {fault}, but it is {expected:?}"),
                (Ok(request), expected) => panic!("chain {head}: {request:?}, but it is {expected:?}"),
            }
            assert_eq!(ring.in_flight(), 0);
        }
    });

    assert!(sound > 1000, "only {sound} chains were sound");
}
