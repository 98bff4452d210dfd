//! What a hostile or unlucky guest can do with its memory. Rows B01 to B16 of the table of hostile inputs, as far as
//! foreign memory meets them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]

mod fixture;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use fixture::{BANK, cached, chunk, contents, guest, pattern, pin, tight_guest};
use guest_memory::{
    Access, AccessError, AnonymousMapping, Budget, Buffers, CHUNK_SIZE, MapCache, MapError, Mapping, PAGE_SIZE,
    PageSource, View,
};
use testkit::memory::{Counts, Failure, FakeForeignMemory};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

const MIB: u64 = 1 << 20;

#[test]
fn b01_an_address_without_memory_is_an_error_and_leaves_nothing_mapped() {
    let (guest, cache, view) = guest(MIB);
    // Below the bank, right behind it, a device's window, the grant table's region, the highest frame.
    for address in [0, BANK - 1, BANK + MIB, 0x200_0000, 0x3800_0000, (1 << 63) - 1] {
        assert!(matches!(pin(&view, address, 1), Err(AccessError::Hole { address: at }) if at == address));
        let read = view.read_obj::<u8>(GuestAddress(address));
        assert!(matches!(read, Err(GuestMemoryError::InvalidGuestAddress(at)) if at.0 == address));
        assert!(!view.check_range(GuestAddress(address), 1, Permissions::Read));
    }
    assert_eq!(guest.counts().live, 0);
    assert_eq!(cache.stats().bytes_mapped, 0);
}

#[test]
fn b01_pages_beside_a_hole_are_reachable_and_the_hole_is_not() {
    let (guest, cache, view) = guest(MIB);
    let page = |n: u64| chunk(2) + n * PAGE_SIZE;
    for hole in [0, 5, 6, 15] {
        guest.balloon_out(page(hole), 1);
    }
    for n in (0..16).filter(|n| ![0, 5, 6, 15].contains(n)) {
        guest.store(page(n), n);
    }

    for n in 0..16 {
        let read = view.read_obj::<u64>(GuestAddress(page(n)));
        match n {
            0 | 5 | 6 | 15 => assert!(read.is_err(), "page {n} is a hole"),
            _ => assert_eq!(read.unwrap(), n),
        }
    }
    assert!(matches!(pin(&view, page(4), 4097), Err(AccessError::Hole { address }) if address == page(5)));
    assert_eq!(pin(&view, page(7), 8 * 4096).unwrap().iovecs().len(), 1, "pages in a row are one buffer");
    assert_eq!(cache.stats().bytes_mapped, 12 * PAGE_SIZE, "holes cost no budget");
}

#[test]
fn b01_a_page_that_fills_a_hole_is_found_without_an_invalidation() {
    let (guest, _cache, view) = guest(MIB);
    guest.balloon_out(chunk(0), 1);
    view.read_obj::<u64>(GuestAddress(chunk(0) + PAGE_SIZE)).unwrap();
    assert!(view.read_obj::<u64>(GuestAddress(chunk(0))).is_err());

    guest.balloon_in(chunk(0), 1);
    guest.store(chunk(0), 7_u64);

    assert_eq!(view.read_obj::<u64>(GuestAddress(chunk(0))).unwrap(), 7);
}

#[test]
fn b02_ranges_that_wrap_or_are_absurdly_long_are_refused_before_anything_is_mapped() {
    let (guest, cache, view) = guest(MIB);
    let refused = |address, len| pin(&view, address, len).unwrap_err();

    assert!(matches!(refused(u64::MAX, 2), AccessError::Overflow { .. }));
    assert!(matches!(refused(u64::MAX - 4095, 8192), AccessError::Overflow { .. }));
    assert!(matches!(refused(BANK, 0xffff_ffff), AccessError::TooLarge { .. }));
    assert!(matches!(refused(BANK, usize::MAX), AccessError::TooLarge { .. }));
    assert!(!view.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    assert!(!view.check_range(GuestAddress(BANK), usize::MAX, Permissions::Read));
    assert_eq!(guest.counts().calls, 0);
    for address in [1 << 40, 1 << 48, 1 << 52, (1 << 62) + 3] {
        assert!(matches!(refused(address, 0x10_0000), AccessError::Hole { .. }));
    }
    assert!(matches!(refused((1 << 63) - 16, 32), AccessError::Hole { .. }), "does not run on into the grants");
    assert_eq!(cache.stats().bytes_mapped, 0);
}

#[test]
fn b02_nothing_at_all_is_fine_anywhere() {
    let (_guest, _cache, view) = guest(MIB);
    for address in [0, BANK, u64::MAX] {
        assert!(pin(&view, address, 0).unwrap().is_empty());
        assert!(view.check_range(GuestAddress(address), 0, Permissions::Read));
        view.read_slice(&mut [], GuestAddress(address)).unwrap();
    }
}

#[test]
fn b03_a_buffer_across_chunks_and_banks_is_whole_and_one_that_ends_in_a_hole_is_refused() {
    let second = BANK + CHUNK_SIZE + 3 * PAGE_SIZE; // the banks meet inside a chunk
    let banks = [(BANK, second - BANK), (second, MIB)];
    let (guest, _cache, view) = cached(FakeForeignMemory::new(&banks), Budget::default());
    let bytes = pattern(200_000);
    guest.write(BANK + 123, &bytes);

    let buffers = pin(&view, BANK + 123, bytes.len()).unwrap();
    assert_eq!(contents(&buffers), bytes);
    let mut read = vec![0; bytes.len()];
    view.read_slice(&mut read, GuestAddress(BANK + 123)).unwrap();
    assert_eq!(read, bytes);

    let mut kept = pin(&view, BANK, 100).unwrap();
    let end = second + MIB;
    let error = view.pin(&[(GuestAddress(end - 4096 - 5), 8192)], Access::Write, &mut kept).unwrap_err();
    assert!(matches!(error, AccessError::Hole { address } if address == end));
    assert_eq!((kept.len(), kept.iovecs().len()), (0, 0), "all or nothing");
    assert!(view.write_slice(&[0; 8192], GuestAddress(end - 4096)).is_err());
}

#[test]
fn b04_a_page_that_left_during_io_stays_with_the_request_and_the_new_page_serves_the_next() {
    let (guest, cache, mut view) = guest(MIB);
    guest.write(BANK, b"before");
    let in_flight = pin(&view, BANK, 6).unwrap();

    guest.balloon_out(BANK, 1);
    guest.balloon_in(BANK, 1);
    guest.write(BANK, b"after ");
    cache.invalidate();

    assert_eq!(contents(&in_flight), b"before");
    in_flight.write(0, b"orphan");
    assert_eq!(contents(&pin(&view, BANK, 6).unwrap()), b"after ");
    assert_eq!(guest.counts().orphans, 1, "the request keeps its page");
    drop(in_flight);
    view.quiesce();
    cache.sweep();
    assert_eq!(guest.counts().orphans, 0, "Xen has its page back");
}

#[test]
fn b05_a_failing_mapping_call_is_an_error_and_the_next_one_works() {
    let (guest, cache, view) = guest(MIB);
    for errno in [libc::ENOENT, libc::ENOMEM, libc::EFAULT, libc::EBUSY] {
        guest.fail_map(1, Failure::Errno(errno));
        let error = pin(&view, BANK, 1).unwrap_err();
        assert!(matches!(&error, AccessError::Host(source) if source.raw_os_error() == Some(errno)));
        assert!(matches!(GuestMemoryError::from(error), GuestMemoryError::IOError(_)));
    }
    guest.fail_map(1, Failure::Busy);
    assert!(matches!(pin(&view, BANK, 1), Err(AccessError::Busy)));
    guest.fail_map(1, Failure::Holes);
    assert!(matches!(pin(&view, BANK, 1), Err(AccessError::Hole { .. })));
    assert_eq!((guest.counts().live, cache.stats().bytes_mapped), (0, 0));

    assert_eq!(pin(&view, BANK, 1).unwrap().len(), 1);
}

#[test]
fn b05_a_failure_of_the_second_call_for_a_chunk_with_holes_maps_nothing() {
    let (guest, cache, view) = guest(MIB);
    guest.balloon_out(BANK, 1);
    guest.fail_map(2, Failure::Errno(libc::ENOMEM));

    assert!(matches!(pin(&view, BANK + PAGE_SIZE, 1), Err(AccessError::Host(_))));

    assert_eq!((guest.counts().live, cache.stats().bytes_mapped), (0, 0));
}

#[test]
fn b05_a_source_that_answers_nonsense_is_the_hosts_fault() {
    struct Nonsense(fn() -> Result<Box<dyn Mapping>, MapError>);
    impl PageSource for Nonsense {
        fn map(&self, _frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
            self.0()
        }
    }
    let no_hole_named = || Err(MapError::Holes(0));
    let less_than_a_page = || Ok(Box::new(AnonymousMapping::new(100).unwrap()) as Box<dyn Mapping>);
    for answer in [no_hole_named, less_than_a_page] {
        let view = View::new(MapCache::new(Nonsense(answer), Budget::default()));
        assert!(matches!(pin(&view, BANK, 1), Err(AccessError::Host(_))));
    }
}

#[test]
fn b06_with_all_of_the_budget_in_flight_more_is_busy_until_a_request_completes() {
    let (guest, cache, mut view) = tight_guest(4 * MIB, 2, 4);
    let mut in_flight: Vec<Buffers> = (0..4).map(|n| pin(&view, chunk(n), 512).unwrap()).collect();

    for _ in 0..10 {
        assert!(matches!(pin(&view, chunk(4), 512), Err(AccessError::Busy)));
    }
    assert_eq!(guest.counts().live, 4, "never more, and never one of those in use");
    assert_eq!(cache.stats().bytes_pinned, 4 * CHUNK_SIZE);
    view.quiesce();
    assert!(matches!(pin(&view, chunk(4), 512), Err(AccessError::Busy)), "the requests hold them still");

    in_flight.pop();
    assert!(pin(&view, chunk(4), 512).is_ok());
    assert_eq!(guest.counts().live, 4);
}

#[test]
fn b06_a_lane_that_finds_no_room_makes_the_others_let_go_of_what_they_only_remember() {
    let (_guest, cache, mut idle) = tight_guest(4 * MIB, 2, 4);
    for n in 0..4 {
        pin(&idle, chunk(n), 1).unwrap();
    }
    let starved = View::new(cache.clone());
    assert!(matches!(pin(&starved, chunk(9), 1), Err(AccessError::Busy)));

    idle.quiesce();

    assert!(pin(&starved, chunk(9), 1).is_ok());
    assert_eq!(cache.stats().busy, 1);
}

#[test]
fn b06_a_buffer_as_large_as_allowed_fits_at_any_alignment() {
    let (_guest, _cache, mut view) = tight_guest(4 * MIB, 1, 8);
    let limit = match pin(&view, BANK, usize::MAX) {
        Err(AccessError::TooLarge { limit, .. }) => limit as usize,
        other => panic!("expected a refusal, got {:?}", other.map(|buffers| buffers.len())),
    };
    for offset in [0, 1, CHUNK_SIZE - 1] {
        view.flush();
        assert_eq!(pin(&view, BANK + offset, limit).unwrap().len(), limit);
    }
    assert!(pin(&view, BANK, limit + 1).is_err());
}

#[test]
fn b07_two_lanes_over_the_same_pages_share_one_mapping_and_see_each_other() {
    let (guest, cache, one) = guest(MIB);
    let two = View::new(cache);
    let (a, b) = (pin(&one, BANK, 8192).unwrap(), pin(&two, BANK + 4096, 8192).unwrap());

    a.write(4096, b"lane one");

    assert_eq!(&contents(&b)[..8], b"lane one");
    assert_eq!(guest.counts().live, 1);
}

#[test]
fn b08_a_guest_that_comes_back_under_a_new_cache_shares_nothing_with_its_former_life() {
    let (before, _cache, view) = guest(MIB);
    before.write(BANK, b"old");
    pin(&view, BANK, 3).unwrap();
    let (after, _cache, view) = guest(MIB);
    after.write(BANK, b"new");
    assert_eq!(contents(&pin(&view, BANK, 3).unwrap()), b"new");
}

#[test]
fn b09_b13_whatever_the_order_in_which_things_go_each_mapping_goes_once() {
    for order in 0..6 {
        let (guest, cache, mut view) = guest(MIB);
        let buffers = pin(&view, BANK, CHUNK_SIZE as usize * 2).unwrap();
        guest.balloon_out(BANK, 1);
        cache.invalidate();
        pin(&view, chunk(1), 10).unwrap();
        view.flush();
        view.flush();
        cache.sweep();
        cache.sweep();
        let mut parts: Vec<Box<dyn std::any::Any>> = vec![Box::new(buffers), Box::new(view), Box::new(cache)];
        parts.rotate_left(order % 3);
        if order >= 3 {
            parts.reverse();
        }
        drop(parts);
        assert_eq!(guest.counts(), Counts { calls: guest.counts().calls, ..Counts::default() }, "order {order}");
    }
}

/// A guest with memory everywhere; says how much of it was mapped at the most.
#[derive(Clone, Default)]
struct Endless(Arc<[AtomicU64; 2]>);

impl PageSource for Endless {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let [live, most] = &*self.0;
        most.fetch_max(live.fetch_add(1, Relaxed) + 1, Relaxed);
        let memory = AnonymousMapping::new(frames.len() * 4096).map_err(MapError::Host)?;
        Ok(Box::new(Counted(memory, self.clone())))
    }
}

struct Counted(AnonymousMapping, Endless);

impl Mapping for Counted {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.0[0].fetch_sub(1, Relaxed);
    }
}

/// Miri, which can run this test and those of plain memory, takes its time.
const TOUCHES: u64 = if cfg!(miri) { 400 } else { 20_000 };

#[test]
fn b10_a_guest_of_64_gib_touched_at_random_stays_within_the_budget() {
    let source = Endless::default();
    let cache = MapCache::new(source.clone(), Budget { kept: 64 * CHUNK_SIZE, at_most: 256 * CHUNK_SIZE });
    let mut view = View::new(cache.clone());
    let mut random = 1_u64;
    for _ in 0..TOUCHES {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        view.write_obj(random as u32, GuestAddress((random >> 28) & !3)).unwrap();
        view.quiesce();
    }
    let [live, most] = &*source.0;
    assert!(most.load(Relaxed) <= 64 + 64 + 1, "kept, the view's own, and the one being mapped: {most:?}");
    assert_eq!(cache.stats().bytes_mapped, live.load(Relaxed) * CHUNK_SIZE);
    assert!(cache.stats().evictions > TOUCHES / 2);
}

#[test]
fn b11_a_grant_says_that_there_is_no_grant_source() {
    let (guest, _cache, view) = guest(MIB);
    let granted = 1 << 63 | 42 << 12 | 8;

    assert!(matches!(pin(&view, granted, 4), Err(AccessError::NoGrantSource { reference: 42 })));
    let error = view.read_obj::<u32>(GuestAddress(granted)).unwrap_err();
    assert!(matches!(error, GuestMemoryError::IOError(error) if error.kind() == std::io::ErrorKind::Unsupported));
    assert!(matches!(view.take_failure(), Some(AccessError::NoGrantSource { reference: 42 })));
    assert_eq!(guest.counts().calls, 0);
}

#[test]
fn b14_whichever_mapping_call_fails_one_request_fails_and_all_others_are_served() {
    let run = |fail: Option<u64>| {
        let (guest, cache, mut view) = tight_guest(2 * MIB, 8, 16);
        guest.balloon_out(chunk(3) + PAGE_SIZE, 2);
        if let Some(nth) = fail {
            guest.fail_map(nth, Failure::Errno(libc::ENOMEM));
        }
        let failures = (0..100)
            .filter(|n| {
                view.quiesce();
                if n % 10 == 9 {
                    cache.invalidate();
                }
                let address = chunk(n * 7 % 31);
                guest.store(address, *n);
                match pin(&view, address, 4096) {
                    Ok(buffers) => {
                        assert_eq!(contents(&buffers)[..8], n.to_le_bytes());
                        false
                    }
                    Err(_) => true,
                }
            })
            .count();
        let calls = guest.counts().calls;
        drop((cache, view));
        assert_eq!(guest.counts().live, 0, "nothing leaks when call {fail:?} fails");
        (failures, calls)
    };

    let (failures, calls) = run(None);
    assert_eq!(failures, 0);
    for nth in 1..=calls {
        assert_eq!(run(Some(nth)).0, 1, "call {nth} of {calls}");
    }
}

#[test]
fn b15_a_header_copied_once_stays_as_it_was_checked() {
    let (guest, _cache, view) = guest(MIB);
    guest.write(BANK, &[1; 16]);
    let buffers = pin(&view, BANK, 16).unwrap();
    let mut header = [0; 16];
    buffers.read(0, &mut header);

    guest.write(BANK, &[2; 16]);

    assert_eq!(header, [1; 16]);
    assert_eq!(contents(&buffers), [2; 16], "the memory itself is the guest's to change");
}

#[test]
fn b16_no_source_file_makes_a_reference_into_guest_memory() {
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    for file in sources.map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        for maker in
            ["from_raw_parts", "&*self.host", "&mut *self.host", ".as_ref_unchecked", "transmute", "read_unaligned"]
        {
            assert!(!text.contains(maker), "{} uses {maker}", file.display());
        }
    }
}
