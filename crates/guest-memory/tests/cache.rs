//! What is kept, what goes, and what a look-up costs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod fixture;

use std::{
    io::{Seek, Write},
    os::fd::AsRawFd,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use fixture::{BANK, cached, chunk, contents, guest, pattern, pin, tight_guest};
use guest_memory::{Access, AccessError, Budget, CHUNK_SIZE, MapCache, MapError, Mapping, PAGE_SIZE, PageSource, View};
use testkit::memory::FakeForeignMemory;
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

/// Looks at the first byte of each chunk.
fn touch(view: &View, chunks: impl IntoIterator<Item = u64>) {
    for n in chunks {
        view.read_obj::<u8>(GuestAddress(chunk(n))).unwrap();
    }
}

#[test]
fn once_the_working_set_is_mapped_io_maps_nothing_more() {
    let (guest, cache, mut view) = guest(8 * MIB);
    touch(&view, 0..128);
    let mapped = guest.counts().calls;
    for pass in 0..1000 {
        view.quiesce();
        drop(pin(&view, chunk(pass * 31 % 128) + 512, 16384).unwrap());
    }
    assert_eq!(guest.counts().calls, mapped);
    assert_eq!(cache.stats().misses, 128);
}

#[test]
fn a_chunk_without_holes_takes_one_call_and_one_with_holes_two() {
    let (guest, cache, view) = guest(MIB);
    touch(&view, [0]);
    assert_eq!((cache.stats().map_calls, cache.stats().pages_mapped, cache.stats().holes), (1, 16, 0));
    guest.balloon_out(chunk(1) + PAGE_SIZE, 3);
    touch(&view, [1]);
    assert_eq!((cache.stats().map_calls, cache.stats().pages_mapped, cache.stats().holes), (3, 29, 3));
    assert_eq!(cache.stats().bytes_mapped, 29 * PAGE_SIZE);
}

#[test]
fn look_ups_are_counted_by_where_they_were_answered() {
    let (_guest, cache, mut view) = guest(MIB);
    let counted = || (cache.stats().misses, cache.stats().refills, cache.stats().hits);

    touch(&view, [0, 0, 0]);
    view.flush();
    assert_eq!(counted(), (1, 0, 2));
    touch(&view, [0]);
    assert_eq!(counted(), (1, 1, 2));

    touch(&view, [0; 300]);
    view.quiesce();
    assert_eq!(counted(), (1, 1, 302), "a busy view hands them in without being flushed");
}

#[test]
fn beyond_the_kept_budget_the_least_recently_used_chunk_goes() {
    let (guest, cache, mut view) = tight_guest(4 * MIB, 16, 64);
    touch(&view, 0..16);
    view.flush();
    touch(&view, [0, 1]);
    view.flush();

    touch(&view, [16, 17]);

    assert_eq!((guest.counts().live, cache.stats().evictions), (16, 2));
    view.flush();
    let calls = guest.counts().calls;
    touch(&view, [0, 1]);
    assert_eq!(guest.counts().calls, calls, "used lately, hence kept");
    touch(&view, [2, 3]);
    assert_eq!(guest.counts().calls, calls + 2, "the oldest, hence gone");
}

#[test]
fn what_a_view_used_until_it_was_displaced_counts_as_used_lately() {
    let (guest, cache, mut busy) = tight_guest(16 * MIB, 32, 256);
    let mut other = View::new(cache);
    touch(&busy, [0]); // from now on answered by the view; the cache does not see it used
    touch(&other, 1..32);
    other.flush();
    touch(&busy, [0, 64]); // 64 takes the place of 0
    busy.quiesce();
    let calls = guest.counts().calls;

    touch(&other, [70, 71, 0]);

    assert_eq!(guest.counts().calls, calls + 2, "70 and 71 were mapped at the cost of older ones than 0");
}

#[test]
fn pins_outgrow_the_kept_budget_and_it_shrinks_back_when_they_go() {
    let (guest, cache, mut view) = tight_guest(4 * MIB, 4, 32);
    let in_flight: Vec<_> = (0..20).map(|n| pin(&view, chunk(n), 1).unwrap()).collect();
    assert_eq!((guest.counts().live, cache.stats().evictions), (20, 0));

    drop(in_flight);
    view.flush();
    touch(&view, [30]);

    assert_eq!(guest.counts().live, 4);
    assert_eq!(cache.stats().bytes_pinned, CHUNK_SIZE, "the one that the view remembers");
}

#[test]
fn an_invalidation_unmaps_nothing_by_itself_and_a_sweep_what_nobody_holds() {
    let (guest, cache, mut view) = guest(MIB);
    touch(&view, 0..4);
    let pinned = pin(&view, chunk(0), 1).unwrap();

    cache.invalidate();
    assert_eq!(guest.counts().live, 4);
    cache.sweep();
    assert_eq!(guest.counts().live, 4, "the view remembers them");
    view.quiesce();
    assert_eq!(guest.counts().live, 1, "the request's own");
    drop(pinned);
    assert_eq!(guest.counts().live, 0);
    assert_eq!((cache.stats().invalidations, cache.stats().bytes_mapped), (1, 0));
}

#[test]
fn a_quiet_view_keeps_what_is_still_right_after_an_invalidation() {
    let (guest, cache, mut view) = guest(MIB);
    touch(&view, [0, 1]);
    cache.invalidate();
    touch(&view, [1]);
    view.quiesce();
    cache.sweep();
    assert_eq!(guest.counts().live, 1);
    touch(&view, [1]);
    assert_eq!(guest.counts().calls, 3);
}

#[test]
fn pinned_memory_survives_eviction_invalidation_and_the_view() {
    let (guest, cache, mut view) = tight_guest(4 * MIB, 1, 32);
    let bytes = pattern(70_000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let buffers = pin(&view, chunk(1) - 100, bytes.len()).unwrap();
    cache.invalidate();
    view.flush();
    touch(&view, 5..10);
    cache.sweep();
    drop((view, cache));

    // A request that completes on another thread, as io_uring's would.
    let buffers = thread::spawn(move || {
        let iovecs = buffers.iovecs();
        file.rewind().unwrap();
        let count = libc::c_int::try_from(iovecs.len()).unwrap();
        // SAFETY: `buffers` keeps them mapped.
        #[expect(unsafe_code, reason = "a system call into guest memory")]
        let read = unsafe { libc::readv(file.as_raw_fd(), iovecs.as_ptr(), count) };
        assert_eq!(read, 70_000);
        buffers
    });
    drop(buffers.join().unwrap());

    let mut seen = vec![0; bytes.len()];
    guest.read(chunk(1) - 100, &mut seen);
    assert_eq!(seen, bytes);
    assert_eq!(guest.counts().live, 0);
}

/// A source whose first calls wait, with the pages mapped, until the test has done something meanwhile.
struct Gated {
    guest: FakeForeignMemory,
    calls: AtomicU64,
    gate: Arc<Gate>,
}

struct Gate {
    entered: Barrier,
    leave: Barrier,
}

impl Gate {
    /// Lets those pass that wait at the gate, once all have come and `meanwhile` is done.
    fn pass(&self, meanwhile: impl FnOnce()) {
        self.entered.wait();
        meanwhile();
        self.leave.wait();
    }
}

impl PageSource for Gated {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let mapped = self.guest.map(frames);
        if self.calls.fetch_update(Relaxed, Relaxed, |calls| calls.checked_sub(1)).is_ok() {
            self.gate.pass(|| {});
        }
        mapped
    }
}

/// A guest whose first `calls` mapping calls, in as many lanes, wait for each other and for the test.
fn gated(calls: u64) -> (FakeForeignMemory, Arc<MapCache>, Arc<Gate>) {
    let guest = FakeForeignMemory::new(&[(BANK, MIB)]);
    let parties = usize::try_from(calls).unwrap() + 1;
    let gate = Arc::new(Gate { entered: Barrier::new(parties), leave: Barrier::new(parties) });
    let source = Gated { guest: guest.clone(), calls: calls.into(), gate: gate.clone() };
    (guest, MapCache::new(source, Budget::default()), gate)
}

#[test]
fn a_mapping_that_races_an_invalidation_is_born_stale() {
    let (guest, cache, gate) = gated(1);
    let view = View::new(cache.clone());
    let lane = thread::spawn(move || [(); 2].map(|()| view.read_obj::<u64>(GuestAddress(BANK)).unwrap()));

    gate.pass(|| {
        guest.replace(BANK, &7_u64.to_le_bytes());
        cache.invalidate();
    });

    assert_eq!(lane.join().unwrap(), [0, 7], "the look-up that was under way may see the old page, the next may not");
}

#[test]
fn two_lanes_that_miss_the_same_chunk_at_once_end_up_with_one_mapping() {
    let (guest, cache, gate) = gated(2);
    let lanes = [(); 2].map(|()| {
        let view = View::new(cache.clone());
        thread::spawn(move || {
            touch(&view, [0]);
            view
        })
    });

    gate.pass(|| assert_eq!(guest.counts().live, 2));

    let views = lanes.map(|lane| lane.join().unwrap());
    assert_eq!((guest.counts().live, cache.stats().bytes_mapped), (1, CHUNK_SIZE));
    drop(views);
}

#[test]
fn an_older_mapping_does_not_replace_a_newer_one() {
    let (guest, cache, gate) = gated(1);
    let (slow, fast) = (View::new(cache.clone()), View::new(cache.clone()));
    let slow = thread::spawn(move || touch(&slow, [0]));

    gate.pass(|| {
        cache.invalidate();
        touch(&fast, [0]);
    });

    slow.join().unwrap();
    drop(fast);
    cache.sweep();
    assert_eq!((guest.counts().live, guest.counts().calls), (1, 2), "the fresh one is kept, the stale one gone");
    touch(&View::new(cache), [0]);
    assert_eq!(guest.counts().calls, 2);
}

#[test]
fn a_failure_swallowed_on_the_way_can_be_asked_for_once() {
    let (_guest, _cache, view) = tight_guest(MIB, 1, 2);
    let _pins = [pin(&view, chunk(0), 1).unwrap(), pin(&view, chunk(1), 1).unwrap()];
    assert!(view.take_failure().is_none());

    assert!(view.read_obj::<u8>(GuestAddress(chunk(2))).is_err());
    assert!(view.read_obj::<u8>(GuestAddress(0)).is_err());

    assert!(matches!(view.take_failure(), Some(AccessError::Busy)), "the first of them");
    assert!(view.take_failure().is_none());
}

#[test]
fn guests_do_not_share_budgets() {
    let (_one, _cache, full) = tight_guest(MIB, 1, 2);
    let _pins = [pin(&full, chunk(0), 1).unwrap(), pin(&full, chunk(1), 1).unwrap()];
    let (_two, _cache, view) = cached(FakeForeignMemory::new(&[(BANK, MIB)]), Budget::default());
    assert!(pin(&view, chunk(2), 1).is_ok());
}

#[test]
fn buffers_read_write_fill_and_clip_across_their_parts() {
    let (guest, _cache, view) = guest(MIB);
    let mut buffers = pin(&view, BANK, 10).unwrap();
    view.pin(&[(GuestAddress(chunk(3) - 5), 20)], Access::Write, &mut buffers).unwrap();
    view.pin(&[(GuestAddress(BANK + 10), 6)], Access::Write, &mut buffers).unwrap();
    let bytes = pattern(36);

    assert_eq!(buffers.write(0, &bytes), 36);
    assert_eq!(contents(&buffers), bytes);
    assert_eq!(buffers.write(30, &[9; 10]), 6, "as much as there is room for");
    assert_eq!(buffers.write(36, &[9]), 0);
    assert_eq!(buffers.fill(8, 4, 0xee), 4);
    assert_eq!(buffers.fill(34, usize::MAX, 0xdd), 2);
    assert_eq!(buffers.read(40, &mut [0; 4]), 0);
    let mut seen = [0; 5];
    guest.read(chunk(3) - 5, &mut seen);
    assert_eq!(seen, [0xee, 0xee, 12, 13, 14]);

    let lengths = |at, len| buffers.clip(at, len).iter().map(|iovec| iovec.iov_len).collect::<Vec<_>>();
    assert_eq!(lengths(0, 36), [10, 5, 15, 6]);
    assert_eq!(lengths(12, 10), [3, 7]);
    assert_eq!(lengths(35, 10), [1]);
    assert!(lengths(36, 1).is_empty());
    assert!(lengths(usize::MAX, usize::MAX).is_empty());
    assert_eq!(buffers.clip(12, 1)[0].iov_base.addr(), buffers.iovecs()[1].iov_base.addr() + 2);

    buffers.clear();
    assert!(buffers.is_empty() && buffers.iovecs().is_empty());
}

#[test]
fn neighbouring_buffers_of_a_chunk_become_one() {
    let (_guest, _cache, view) = guest(MIB);
    let mut buffers = pin(&view, BANK, 4096).unwrap();
    view.pin(&[(GuestAddress(BANK + 4096), 4096)], Access::Write, &mut buffers).unwrap();
    assert_eq!(buffers.iovecs().len(), 1);
    assert_eq!((buffers.iovecs()[0].iov_len, buffers.len()), (8192, 8192));
}

#[test]
fn alignment_looks_at_starts_and_lengths() {
    let (_guest, _cache, view) = guest(MIB);
    let aligned = |address, len| pin(&view, address, len).unwrap().is_aligned_to(512);
    assert!(aligned(BANK + 512, 1024));
    assert!(!aligned(BANK + 256, 1024));
    assert!(!aligned(BANK + 512, 1000));
    assert!(aligned(BANK, 0));
}

#[test]
fn foreign_memory_is_not_for_direct_io() {
    let (_guest, _cache, view) = guest(MIB);
    assert!(!pin(&view, BANK, 4096).unwrap().direct_io_capable());
}
