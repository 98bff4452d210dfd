//! Every order of events between lanes that look up, the pump that invalidates, and sweeps: `make models`.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a model reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Count;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use guest_memory::{
    Access, AccessError, AnonymousMapping, Budget, Buffers, CHUNK_SIZE, MapCache, MapError, Mapping, PageSource, View,
};
use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, AtomicU8};
use loom::thread;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

/// What stands at each guest address: which memory the guest has there now.
#[derive(Clone)]
struct Guest {
    now: Arc<AtomicU8>,
    /// Chunks mapped. No part of the model.
    mapped: Arc<Count>,
    limit: u64,
}

impl Guest {
    fn new() -> Self {
        Self { now: Arc::new(AtomicU8::new(1)), mapped: Arc::default(), limit: u64::MAX }
    }

    fn cache(&self, budget: Budget) -> Arc<MapCache> {
        MapCache::new(self.clone(), budget)
    }

    fn mapped(&self) -> u64 {
        self.mapped.load(SeqCst)
    }
}

impl PageSource for Guest {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let memory = AnonymousMapping::new(frames.len() * 4096).map_err(MapError::Host)?;
        memory.memory().write_obj(self.now.load(Relaxed), 0).unwrap();
        assert!(self.mapped.fetch_add(1, SeqCst) < self.limit, "more is mapped than the budget allows");
        Ok(Box::new(Chunk { memory, mapped: Arc::clone(&self.mapped) }))
    }
}

/// Memory that is counted.
struct Chunk {
    memory: AnonymousMapping,
    mapped: Arc<Count>,
}

impl Mapping for Chunk {
    fn memory(&self) -> VolatileSlice<'_> {
        self.memory.memory()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.mapped.fetch_sub(1, SeqCst);
    }
}

/// Every order in which threads are interrupted so many times or fewer: all of them would take hours.
fn model(interruptions: usize, orders: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(interruptions);
    let tried = Arc::<Count>::default();
    builder.check({
        let tried = Arc::clone(&tried);
        move || {
            tried.fetch_add(1, Relaxed);
            orders();
        }
    });
    println!("{} orders", tried.load(Relaxed));
}

fn look(view: &View) -> u8 {
    view.read_obj(GuestAddress(0)).unwrap()
}

/// Lanes look some times while the guest gets other memory. What they see must be the new one if the invalidation had been
/// answered when they began to look.
fn no_look_up_is_behind(lanes: usize, looks: usize, is_warm: bool) {
    model(4 - lanes, move || {
        let (guest, answered) = (Guest::new(), Arc::new(AtomicBool::new(false)));
        let cache = guest.cache(Budget::default());
        let lanes: Vec<_> = (0..lanes)
            .map(|_| {
                let (mut view, answered) = (View::new(Arc::clone(&cache)), Arc::clone(&answered));
                if is_warm {
                    assert_eq!(look(&view), 1);
                }
                thread::spawn(move || {
                    for _ in 0..looks {
                        let must_be_new = answered.load(Acquire);
                        let seen = look(&view);
                        assert!(seen == 2 || !must_be_new, "an older mapping was found");
                        view.quiesce();
                    }
                })
            })
            .collect();

        guest.now.store(2, Relaxed);
        cache.invalidate();
        answered.store(true, Release);
        cache.sweep();

        lanes.into_iter().for_each(|lane| lane.join().unwrap());
        assert_eq!(look(&View::new(Arc::clone(&cache))), 2);
        cache.invalidate();
        cache.sweep();
        assert_eq!(guest.mapped(), 0, "what nobody holds stays mapped");
    });
}

#[test]
fn b08_no_look_up_that_starts_after_an_invalidation_finds_what_was_mapped_before() {
    no_look_up_is_behind(1, 2, true);
}

#[test]
fn b08_two_lanes_that_miss_while_the_guest_changes_find_nothing_old_later() {
    no_look_up_is_behind(2, 1, false);
}

#[test]
fn b04_what_a_request_holds_stays_mapped_however_it_is_invalidated_and_swept() {
    model(3, || {
        let guest = Guest::new();
        let cache = guest.cache(Budget::default());
        let lane = thread::spawn({
            let (guest, cache) = (guest.clone(), Arc::clone(&cache));
            move || {
                let (mut view, mut held) = (View::new(cache), Buffers::new());
                view.pin(&[(GuestAddress(0), 1)], Access::Read, &mut held).unwrap();
                view.flush();
                let mut seen = [0];
                held.read(0, &mut seen);
                assert!(seen != [0] && guest.mapped() > 0);
            }
        });

        guest.now.store(2, Relaxed);
        cache.invalidate();
        cache.sweep();

        lane.join().unwrap();
        cache.invalidate();
        cache.sweep();
        assert_eq!(guest.mapped(), 0);
    });
}

#[test]
fn b06_two_lanes_that_want_all_of_the_budget_never_map_more_and_one_of_them_gets_it() {
    model(3, || {
        let guest = Guest { limit: 2, ..Guest::new() };
        let cache = guest.cache(Budget { kept: 0, at_most: 2 * CHUNK_SIZE });
        let want = |cache: Arc<MapCache>| {
            let mut view = View::new(cache);
            let mut got = 0;
            for chunk in 0..2 {
                match view.read_obj::<u8>(GuestAddress(chunk * CHUNK_SIZE)) {
                    Ok(_) => got += 1,
                    Err(_) => assert!(matches!(view.take_failure(), Some(AccessError::Busy))),
                }
            }
            view.quiesce();
            got
        };
        let other = thread::spawn({
            let cache = Arc::clone(&cache);
            move || want(cache)
        });

        let got = want(cache) + other.join().unwrap();

        assert!(got >= 2, "{got} look-ups of four, though two would fit at any time");
        assert_eq!(guest.mapped(), 0);
    });
}
