//! Frames swapped under load: no look-up that starts after `invalidate` returned may see the former page.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod fixture;

use std::{
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    thread,
};

use fixture::{chunk, pin, tight_guest};
use guest_memory::{Buffers, MapCache, View};
use vm_memory::{Bytes, GuestAddress};

const SWAPS: u64 = 600;
const CHUNKS: u64 = 6;

/// What the pump has published: every page holds at least this number.
static PUBLISHED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

/// Looks and pins at random, and checks that what it gets is not older than what was published before it looked.
fn lane(cache: &MapCache, mut view: View, seed: u64) -> u64 {
    let mut random = seed;
    let mut in_flight: Vec<(Buffers, u64)> = Vec::new();
    let mut looks = 0;
    while !DONE.load(Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let address = chunk((random >> 33) % CHUNKS);
        let published = PUBLISHED.load(Acquire);
        let seen: u64 = view.load(GuestAddress(address), Acquire).unwrap();
        assert!(seen >= published, "an old page: {seen} after {published}");
        let buffers = pin(&view, address, 8).unwrap();
        let mut bytes = [0; 8];
        buffers.read(0, &mut bytes);
        assert!(u64::from_le_bytes(bytes) >= published, "an old page was pinned");
        match random >> 60 {
            0 => in_flight.push((buffers, u64::from_le_bytes(bytes))),
            1 => cache.sweep(),
            2 => view.flush(),
            _ => view.quiesce(),
        }
        if in_flight.len() > 4 {
            let (buffers, number) = in_flight.remove(0);
            buffers.read(0, &mut bytes);
            assert_eq!(u64::from_le_bytes(bytes), number, "a pinned page changed");
        }
        looks += 1;
    }
    looks
}

#[test]
fn b04_no_look_up_after_an_invalidation_sees_the_former_page() {
    let (guest, cache, view) = tight_guest(1 << 20, 3, 64);
    drop(view);
    thread::scope(|scope| {
        let lanes: Vec<_> = (1..=3)
            .map(|seed| {
                scope.spawn({
                    let cache = &cache;
                    move || lane(cache, View::new(cache.clone()), seed)
                })
            })
            .collect();
        for number in 1..=SWAPS {
            for n in 0..CHUNKS {
                guest.replace(chunk(n), &number.to_le_bytes());
            }
            cache.invalidate();
            PUBLISHED.store(number, Release);
            thread::yield_now();
        }
        DONE.store(true, Relaxed);
        let looks: u64 = lanes.into_iter().map(|lane| lane.join().unwrap()).sum();
        assert!(looks > SWAPS / 10, "the lanes looked while pages were swapped: {looks}");
    });
    cache.invalidate();
    cache.sweep();
    assert_eq!(guest.counts().live, 0);
    assert_eq!(cache.stats().bytes_mapped, 0);
}
