//! A view against a model: the guest's own CPU, and the set of pages that are memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]

mod fixture;

use std::collections::BTreeSet;

use fixture::{BANK, cached, contents};
use guest_memory::{Access, AccessError, Budget, Buffers, CHUNK_SIZE, PAGE_SIZE, View};
use proptest::prelude::*;
use testkit::memory::FakeForeignMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

const PAGES: u64 = 64;

#[derive(Clone, Debug)]
enum Step {
    /// The guest gives a page up; Xen says so.
    BalloonOut(u64),
    /// It gets one where it has none; nobody says so.
    BalloonIn(u64),
    GuestWrites {
        at: u64,
        byte: u8,
    },
    Read {
        at: u64,
        len: usize,
    },
    Write {
        at: u64,
        len: usize,
        byte: u8,
    },
    Pin {
        at: u64,
        len: usize,
    },
    Quiesce,
    Flush,
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..PAGES;
    // A bit outside of the memory on both sides.
    let at = BANK - 5000..BANK + PAGES * PAGE_SIZE + 5000;
    let len = prop_oneof![0..20_usize, 4000..9000_usize, 60_000..140_000_usize];
    prop_oneof![
        page.clone().prop_map(Step::BalloonOut),
        page.prop_map(Step::BalloonIn),
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Step::GuestWrites { at, byte }),
        (at.clone(), len.clone()).prop_map(|(at, len)| Step::Read { at, len }),
        (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write { at, len, byte }),
        (at, len).prop_map(|(at, len)| Step::Pin { at, len }),
        Just(Step::Quiesce),
        Just(Step::Flush),
        Just(Step::Sweep),
    ]
}

struct Model {
    guest: FakeForeignMemory,
    memory: BTreeSet<u64>,
}

impl Model {
    /// The first byte of the range that is not memory.
    fn first_hole(&self, at: u64, len: usize) -> Option<u64> {
        let pages = at / PAGE_SIZE..(at + len as u64).div_ceil(PAGE_SIZE);
        let hole = pages.into_iter().find(|page| !self.memory.contains(page))?;
        (len > 0).then_some((hole * PAGE_SIZE).max(at))
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.guest.read(at, &mut bytes);
        bytes
    }

    fn check(&self, view: &View, at: u64, len: usize, result: Result<Buffers, AccessError>) {
        let hole = self.first_hole(at, len);
        assert_eq!(view.check_range(GuestAddress(at), len, Permissions::ReadWrite), hole.is_none());
        match (result, hole) {
            (Ok(buffers), None) => {
                assert_eq!(contents(&buffers), self.bytes(at, len));
                assert!(buffers.iovecs().iter().all(|iovec| iovec.iov_len > 0));
            }
            (Err(AccessError::Hole { address }), Some(hole)) => assert_eq!(address, hole),
            (result, hole) => panic!("{at:#x}+{len}: {result:?}, but first hole is {hole:x?}"),
        }
    }
}

proptest! {
    #[test]
    fn b03_a_view_reaches_what_the_guest_has_and_nothing_else(steps in prop::collection::vec(step(), 1..60)) {
        let guest = FakeForeignMemory::new(&[(BANK, PAGES * PAGE_SIZE)]);
        let budget = Budget { kept: 2 * CHUNK_SIZE, at_most: 16 * CHUNK_SIZE };
        let (guest, cache, mut view) = cached(guest, budget);
        let first = BANK / PAGE_SIZE;
        let mut model = Model { guest: guest.clone(), memory: (first..first + PAGES).collect() };
        for step in steps {
            match step {
                Step::BalloonOut(page) => {
                    guest.balloon_out(BANK + page * PAGE_SIZE, 1);
                    model.memory.remove(&(first + page));
                    cache.invalidate();
                }
                Step::BalloonIn(page) => {
                    if model.memory.insert(first + page) {
                        guest.balloon_in(BANK + page * PAGE_SIZE, 1);
                    }
                }
                Step::GuestWrites { at, byte } => {
                    if model.first_hole(at, 1).is_none() {
                        guest.write(at, &[byte]);
                    }
                }
                Step::Read { at, len } => {
                    let mut bytes = vec![0; len];
                    let read = view.read_slice(&mut bytes, GuestAddress(at));
                    assert_eq!(read.is_err(), model.first_hole(at, len).is_some());
                    if read.is_ok() {
                        assert_eq!(bytes, model.bytes(at, len));
                    }
                }
                Step::Write { at, len, byte } => {
                    let mut buffers = Buffers::new();
                    let pinned = view.pin(&[(GuestAddress(at), len)], Access::Write, &mut buffers);
                    assert_eq!(pinned.is_err(), model.first_hole(at, len).is_some());
                    if pinned.is_ok() {
                        let middle = len / 3;
                        assert_eq!(buffers.fill(middle, middle, byte), middle);
                        assert_eq!(model.bytes(at + middle as u64, middle), vec![byte; middle]);
                    }
                }
                Step::Pin { at, len } => {
                    let result = fixture::pin(&view, at, len);
                    model.check(&view, at, len, result);
                }
                Step::Quiesce => view.quiesce(),
                Step::Flush => view.flush(),
                Step::Sweep => cache.sweep(),
            }
            assert!(cache.stats().bytes_mapped <= budget.at_most);
        }
        drop((view, cache));
        assert_eq!(guest.counts().live, 0);
    }
}
