//! Granted pages through a view: what is mapped, what is copied, what is refused, and that nothing outlives its user.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]

mod fixture;

use std::{sync::Arc, thread};

use fixture::{BANK, contents, pattern};
use guest_memory::{
    Access, AccessError, AnonymousMapping, Budget, Buffers, CHUNK_SIZE, GrantCopy, GrantError, GrantSource, MapCache,
    Mapping, PAGE_SIZE, Sources, View,
};
use testkit::grants::{FakeGrants, GRANT, GrantFailure};
use testkit::memory::FakeForeignMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Bytes that are copied whatever comes with them, and bytes that are mapped.
const SMALL: usize = 100;
const LARGE: usize = 5000;

/// A guest, its grants, and a view that reaches nothing else.
struct Guest {
    memory: FakeForeignMemory,
    grants: FakeGrants,
    cache: Arc<MapCache>,
    view: View,
}

impl Guest {
    fn new() -> Self {
        Self::reaching(Budget::default(), |_, grants| Sources::grants(grants))
    }

    fn reaching(budget: Budget, sources: impl FnOnce(FakeForeignMemory, FakeGrants) -> Sources) -> Self {
        let memory = FakeForeignMemory::new(&[(BANK, 1 << 20)]);
        let grants = FakeGrants::new(memory.clone());
        let cache = MapCache::new(sources(memory.clone(), grants.clone()).copying_up_to(4096), budget);
        let view = View::new(cache.clone());
        Self { memory, grants, cache, view }
    }

    fn pin(&self, pieces: &[(u64, usize)], access: Access) -> Result<Buffers, AccessError> {
        let pieces: Vec<_> = pieces.iter().map(|&(address, len)| (GuestAddress(address), len)).collect();
        let mut buffers = Buffers::new();
        self.view.pin(&pieces, access, &mut buffers).map(|()| buffers)
    }

    /// Pins and fetches.
    fn take(&self, pieces: &[(u64, usize)]) -> Result<Buffers, AccessError> {
        let buffers = self.pin(pieces, Access::Read)?;
        self.view.copy_in([&buffers]).map(|()| buffers)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes);
        bytes
    }

    fn assert_nothing_held(&self) {
        assert_eq!((self.grants.counts().live, self.cache.stats().bytes_mapped), (0, 0));
    }
}

fn is_refused<T>(outcome: &Result<T, AccessError>) -> bool {
    matches!(outcome, Err(AccessError::Refused { .. }))
}

#[test]
fn small_pieces_are_copied_in_one_call_and_large_ones_mapped_in_one() {
    let guest = Guest::new();
    let bytes = pattern(2 * (SMALL + LARGE));
    guest.memory.write(BANK, &bytes);
    let mut at = BANK;
    let pieces = [SMALL, LARGE, SMALL, LARGE].map(|len| {
        at += len as u64;
        (guest.grants.grant(at - len as u64, len, Access::Read), len)
    });

    let buffers = guest.take(&pieces).unwrap();

    assert_eq!(contents(&buffers), bytes);
    let counts = guest.grants.counts();
    assert_eq!((counts.maps, counts.copies), (1, 1));
    drop(buffers);
    guest.assert_nothing_held();
    for (granted, len) in pieces {
        guest.grants.end_access(granted, len).unwrap();
    }
}

#[test]
fn unless_told_otherwise_as_much_as_a_block_driver_asks_for_at_once_is_copied() {
    let memory = FakeForeignMemory::new(&[(BANK, 1 << 20)]);
    let grants = FakeGrants::new(memory);
    let view = View::new(MapCache::new(Sources::grants(grants.clone()), Budget::default()));
    for (len, is_mapped) in [(1 << 16, 0), ((1 << 16) + 1, 1)] {
        let granted = GuestAddress(grants.grant(BANK, len, Access::Read));
        view.pin(&[(granted, len)], Access::Read, &mut Buffers::new()).unwrap();
        assert_eq!(grants.counts().maps, is_mapped);
    }
}

#[test]
fn what_is_copied_is_as_it_was_and_what_is_mapped_is_as_it_is() {
    let guest = Guest::new();
    let small = guest.grants.grant(BANK, SMALL, Access::Read);
    let large = guest.grants.grant(BANK + 0x4000, LARGE, Access::Read);
    let buffers = guest.take(&[(small, SMALL), (large, LARGE)]).unwrap();
    guest.memory.write(BANK, b"changed");
    guest.memory.write(BANK + 0x4000, b"changed");
    let contents = contents(&buffers);
    assert_eq!((&contents[..7], &contents[SMALL..SMALL + 7]), (&[0; 7][..], &b"changed"[..]));
}

#[test]
fn what_is_for_reading_is_not_written_to() {
    let guest = Guest::new();
    let large = guest.grants.grant(BANK, LARGE, Access::Write);
    let buffers = guest.take(&[(large, LARGE)]).unwrap();
    // With the page mapped for reading, a write would end the process.
    assert_eq!((buffers.write(0, b"x"), buffers.fill(0, LARGE, 1)), (0, 0));
    assert_eq!(guest.bytes(BANK, LARGE), vec![0; LARGE]);
}

#[test]
fn of_what_is_copied_the_guest_gets_what_was_written_and_no_more() {
    for (written, touched) in [(0, None), (10, None), (0, Some(90)), (10, Some(90))] {
        let guest = Guest::new();
        guest.memory.write(BANK, &[0xee; 2 * SMALL]);
        let granted = guest.grants.grant(BANK + 7, SMALL, Access::Write);
        let buffers = guest.pin(&[(granted, SMALL)], Access::Write).unwrap();
        assert!(buffers.is_to_be_stored());
        if let Some(at) = touched {
            assert_eq!(buffers.write(at, b"ok"), 2);
        }
        assert_eq!(guest.bytes(BANK, 2 * SMALL), vec![0xee; 2 * SMALL], "not before it is stored");
        guest.view.copy_out([(&buffers, written)]).unwrap();

        let bytes = guest.bytes(BANK, 2 * SMALL);
        let end = touched.map_or(written, |at| at + 2);
        let start = if written > 0 { 0 } else { touched.unwrap_or(0) };
        assert_eq!(bytes[..7 + start], [0xee; 2 * SMALL][..7 + start], "{written} {touched:?}");
        assert_eq!(bytes[7 + end..], [0xee; 2 * SMALL][7 + end..], "{written} {touched:?}");
        touched.inspect(|at| assert_eq!(&bytes[7 + at..9 + at], b"ok"));
    }
}

#[test]
fn many_requests_are_fetched_and_stored_with_a_call_each_and_none_with_none() {
    let guest = Guest::new();
    guest.view.copy_in([]).unwrap();
    guest.view.copy_out([]).unwrap();
    let granted = guest.grants.grant(BANK, SMALL, Access::Write);
    let requests: Vec<_> = (0..20).map(|_| guest.pin(&[(granted, SMALL)], Access::Write).unwrap()).collect();
    guest.view.copy_in(&requests).unwrap();
    guest.view.copy_out(requests.iter().map(|request| (request, SMALL))).unwrap();
    assert_eq!((guest.grants.counts().copies, guest.grants.counts().pieces), (2, 40));
}

#[test]
fn what_is_copied_can_be_read_and_written_past_the_page_cache_and_what_is_mapped_cannot() {
    let guest = Guest::new();
    let pieces = [16, 4096].map(|len| (guest.grants.grant(BANK + len as u64, len, Access::Write), len));
    let copied = guest.pin(&pieces, Access::Write).unwrap();
    assert!(copied.direct_io_capable());
    assert_eq!(copied.iovecs()[1].iov_base.addr() % 4096, 0);
    let sectors = guest.pin(&[(guest.grants.grant(BANK, 1024, Access::Write), 1024)], Access::Write).unwrap();
    assert!(sectors.is_aligned_to(512));
    let mapped = guest.pin(&[(guest.grants.grant(BANK, LARGE, Access::Write), LARGE)], Access::Write).unwrap();
    assert!(!mapped.direct_io_capable());
}

#[test]
fn b11_a_bad_grant_is_refused_where_it_is_mapped_and_where_it_is_copied() {
    for len in [SMALL, LARGE] {
        let guest = Guest::new();
        let ended = guest.grants.grant(BANK, len, Access::Write);
        guest.grants.end_access(ended, len).unwrap();
        let bad = [
            ended,
            guest.grants.grant_to_another(BANK, len, Access::Write),
            GRANT | 1 << 30,
            GRANT | u64::from(u32::MAX) << 12,
            GRANT | 1 << 44,
            GRANT | 1 << 62,
            u64::MAX - len as u64,
        ];
        for granted in bad {
            assert!(is_refused(&guest.take(&[(granted, len)])), "{granted:#x}");
            let stored = guest.pin(&[(granted, len)], Access::Write).and_then(|buffers| {
                buffers.fill(0, len, 1);
                guest.view.copy_out([(&buffers, len)])
            });
            assert!(is_refused(&stored), "{granted:#x}");
            guest.assert_nothing_held();
        }
        assert_eq!(guest.bytes(BANK, len), vec![0; len]);
        assert!(guest.cache.stats().grants_refused > 0);
    }
}

#[test]
fn b11_a_page_for_reading_is_refused_to_who_writes() {
    for len in [SMALL, LARGE] {
        let guest = Guest::new();
        let granted = guest.grants.grant(BANK, len, Access::Read);
        assert!(guest.take(&[(granted, len)]).is_ok());
        let stored = guest.pin(&[(granted, len)], Access::Write).and_then(|buffers| {
            buffers.fill(0, len, 1);
            guest.view.copy_out([(&buffers, len)])
        });
        assert!(is_refused(&stored));
        guest.assert_nothing_held();
    }
}

#[test]
fn b11_a_plain_address_where_there_are_only_grants_maps_nothing() {
    let mut guest = Guest::new();
    let good = guest.grants.grant(BANK, LARGE, Access::Write);
    let pinned = guest.pin(&[(good, LARGE), (BANK, 1)], Access::Read);
    assert!(matches!(pinned, Err(AccessError::GrantsOnly { address: BANK })));
    let kept = guest.view.keep(GuestAddress(BANK), 16);
    assert!(matches!(kept, Err(AccessError::GrantsOnly { address: BANK })));
    assert!(guest.view.read_obj::<u8>(GuestAddress(BANK)).is_err());
    assert!(matches!(guest.view.take_failure(), Some(AccessError::GrantsOnly { .. })));
    guest.assert_nothing_held();
    assert_eq!(guest.memory.counts().calls, 0);
}

#[test]
fn b03_of_pieces_of_which_one_is_bad_nothing_is_left() {
    let both = |memory: FakeForeignMemory, grants| Sources::from(memory).with_grants(grants);
    let guest = Guest::reaching(Budget::default(), both);
    let (small, large) = (guest.grants.grant(BANK, SMALL, Access::Read), guest.grants.grant(BANK, LARGE, Access::Read));
    for bad in [(GRANT | 1 << 30, LARGE), (BANK + (2 << 20), 1), (GRANT | 1 << 60, 1), (u64::MAX, 2)] {
        let mut buffers = guest.pin(&[(small, SMALL), (BANK + 0x4000, 64)], Access::Read).unwrap();
        let pieces = [(small, SMALL), (large, LARGE), (BANK + 0x4040, 64), bad];
        let pieces = pieces.map(|(address, len)| (GuestAddress(address), len));
        assert!(guest.view.pin(&pieces, Access::Read, &mut buffers).is_err());
        assert_eq!((guest.grants.counts().live, buffers.len(), buffers.iovecs().len()), (0, 0, 0));
    }
}

#[test]
fn b02_absurd_lengths_are_refused_before_anything_is_asked_for() {
    let guest = Guest::new();
    let granted = guest.grants.grant(BANK, 1, Access::Write);
    for len in [1 << 31, 1 << 40, usize::MAX] {
        assert!(matches!(guest.pin(&[(granted, len)], Access::Read), Err(AccessError::TooLarge { .. })));
        assert!(matches!(guest.pin(&[(granted, 1), (granted, len)], Access::Read), Err(AccessError::TooLarge { .. })));
    }
    assert!(guest.pin(&[(granted, 0), (u64::MAX, 0), (GRANT, 0), (BANK, 0)], Access::Read).unwrap().is_empty());
    assert_eq!(guest.grants.counts().calls(), 0);
}

#[test]
fn rings_are_kept_through_invalidations_and_flushes_and_nothing_beside_them_is_reached() {
    let mut guest = Guest::new();
    // It begins on one page and ends on the next.
    let ring = guest.grants.grant(BANK + 0xff0, 32, Access::Write);
    guest.view.keep(GuestAddress(ring), 32).unwrap();
    assert!(guest.view.check_range(GuestAddress(ring), 32, Permissions::ReadWrite));

    for round in 0..10_u64 {
        guest.view.write_obj(round, GuestAddress(ring + 12)).unwrap();
        assert_eq!(guest.bytes(BANK + 0xffc, 8), round.to_le_bytes());
        guest.cache.invalidate();
        guest.view.quiesce();
        guest.view.flush();
        guest.cache.sweep();
    }
    assert_eq!((guest.grants.counts().maps, guest.cache.stats().bytes_mapped), (1, 2 * PAGE_SIZE));

    for beside in [ring - 1, ring + 32, ring - 0xff0, ring + PAGE_SIZE, GRANT] {
        assert!(guest.view.read_obj::<u8>(GuestAddress(beside)).is_err(), "{beside:#x}");
        assert!(matches!(guest.view.take_failure(), Some(AccessError::Refused { .. })));
    }
    assert!(!guest.view.check_range(GuestAddress(ring + 31), 2, Permissions::Read));
    let Guest { grants, view, .. } = guest;
    assert!(grants.end_access(ring, 32).is_err());
    drop(view);
    grants.end_access(ring, 32).unwrap();
}

#[test]
fn tables_are_copied_together_and_until_the_next_ones() {
    let mut guest = Guest::new();
    let bytes = pattern(10_000);
    guest.memory.write(BANK + 100, &bytes);
    let first = guest.grants.grant(BANK + 100, 9000, Access::Read);
    let second = guest.grants.grant(BANK + 9100, 1000, Access::Read);
    let areas = [(first, 9000), (BANK, 16), (second, 1000)].map(|(address, len)| (GuestAddress(address), len));
    guest.view.copy_tables(&areas).unwrap();
    assert_eq!((guest.grants.counts().copies, guest.grants.counts().maps), (1, 0));
    guest.memory.write(BANK + 100, &[0; 10_000]);

    let mut read = vec![0; 9000];
    guest.view.read_slice(&mut read, GuestAddress(first)).unwrap();
    assert_eq!(read, bytes[..9000]);
    assert_eq!(guest.view.read_obj::<u8>(GuestAddress(second + 999)).unwrap(), bytes[9999]);
    assert!(guest.view.read_obj::<u8>(GuestAddress(second + 1000)).is_err());

    guest.view.copy_tables(&areas[2..]).unwrap();
    assert!(guest.view.read_obj::<u8>(GuestAddress(first)).is_err());
    guest.view.copy_tables(&[]).unwrap();
    assert!(guest.view.read_obj::<u8>(GuestAddress(second)).is_err());
    guest.assert_nothing_held();
}

#[test]
fn b11_tables_that_are_not_to_be_had_leave_none() {
    let mut guest = Guest::new();
    let good = GuestAddress(guest.grants.grant(BANK, 16, Access::Read));
    guest.view.copy_tables(&[(good, 16)]).unwrap();
    for bad in [GRANT | 1 << 30, GRANT | 1 << 50] {
        assert!(is_refused(&guest.view.copy_tables(&[(good, 16), (GuestAddress(bad), 16)])));
        assert!(guest.view.read_obj::<u8>(good).is_err());
    }
    guest.assert_nothing_held();
}

#[test]
fn b06_the_budget_counts_grants_and_frames_make_room_for_them() {
    let budget = Budget { kept: 2 * CHUNK_SIZE, at_most: 2 * CHUNK_SIZE };
    let mut guest = Guest::reaching(budget, |memory, grants| Sources::from(memory).with_grants(grants));
    guest.view.read_obj::<u8>(GuestAddress(BANK)).unwrap();
    guest.view.read_obj::<u8>(GuestAddress(BANK + CHUNK_SIZE)).unwrap();
    guest.view.flush();
    let len = CHUNK_SIZE as usize;
    let granted = guest.grants.grant(BANK, len, Access::Write);

    let first = guest.pin(&[(granted, len)], Access::Read).unwrap();
    assert_eq!(guest.memory.counts().live, 1, "what was kept made room");
    let second = guest.pin(&[(granted, len)], Access::Read).unwrap();
    assert!(matches!(guest.pin(&[(granted, len)], Access::Read), Err(AccessError::Busy)));
    assert!(matches!(guest.pin(&[(granted, SMALL)], Access::Read), Err(AccessError::Busy)), "copies count, too");
    assert_eq!(guest.cache.stats().bytes_pinned, 2 * CHUNK_SIZE);
    drop((first, second));
    drop(guest.pin(&[(granted, len)], Access::Read).unwrap());
    assert_eq!(guest.cache.stats().bytes_mapped, 0);
}

#[test]
fn g_what_a_request_holds_outlives_the_view_and_goes_with_it() {
    let guest = Guest::new();
    let pieces = [SMALL, LARGE].map(|len| (guest.grants.grant(BANK, len, Access::Read), len));
    let buffers = guest.take(&pieces).unwrap();
    let Guest { memory, grants, cache, view } = guest;
    drop((view, cache));
    memory.write(BANK, b"later");
    thread::spawn(move || assert_eq!(&contents(&buffers)[SMALL..SMALL + 5], b"later")).join().unwrap();
    for (granted, len) in pieces {
        grants.end_access(granted, len).unwrap();
    }
}

#[test]
fn b14_the_hosts_failures_are_told_apart_and_leave_nothing() {
    for failure in [GrantFailure::Busy, GrantFailure::Errno(libc::EFAULT)] {
        // Of a map and a copy.
        for nth in [1, 2] {
            let guest = Guest::new();
            let pieces = [SMALL, LARGE].map(|len| (guest.grants.grant(BANK, len, Access::Read), len));
            guest.grants.fail_call(nth, failure);
            match guest.take(&pieces) {
                Err(AccessError::Busy) => assert!(matches!(failure, GrantFailure::Busy)),
                Err(AccessError::Host(error)) => assert_eq!(error.raw_os_error(), Some(libc::EFAULT)),
                other => panic!("{other:?}"),
            }
            guest.assert_nothing_held();
            assert!(guest.take(&pieces).is_ok());
        }
    }
}

/// Maps one page, whatever it is asked for.
struct OnePage;

impl GrantSource for OnePage {
    fn map(&self, _references: &[u32], _access: Access) -> Result<Box<dyn Mapping>, GrantError> {
        Ok(Box::new(AnonymousMapping::new(4096).map_err(GrantError::Host)?))
    }

    fn copy(&self, _pieces: &[GrantCopy<'_>]) -> Result<(), GrantError> {
        Err(GrantError::Busy)
    }
}

#[test]
fn a_source_that_maps_less_than_it_was_asked_for_is_found_out() {
    let cache = MapCache::new(Sources::grants(OnePage).copying_up_to(4096), Budget::default());
    let view = View::new(cache.clone());
    let pinned = view.pin(&[(GuestAddress(GRANT), 8192)], Access::Read, &mut Buffers::new());
    assert!(matches!(pinned, Err(AccessError::Host(_))), "{pinned:?}");
    assert_eq!(cache.stats().bytes_mapped, 0);
}
