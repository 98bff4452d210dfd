//! The fake grant table, held to the rules that it stands for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use guest_memory::{Access, GrantCopy, GrantError, GrantSource, Mapping};
use testkit::grants::{FakeGrants, GRANT, GrantFailure};
use testkit::memory::FakeForeignMemory;
use vm_memory::VolatileSlice;

const BANK: u64 = 0x4000_0000;

fn guest() -> (FakeForeignMemory, FakeGrants) {
    let memory = FakeForeignMemory::new(&[(BANK, 1 << 20)]);
    (memory.clone(), FakeGrants::new(memory))
}

fn reference(granted: u64) -> u32 {
    u32::try_from((granted & !GRANT) / 4096).unwrap()
}

fn is_refused<T>(outcome: Result<T, GrantError>, granted: u64) -> bool {
    matches!(outcome, Err(GrantError::Refused { reference: refused }) if refused == reference(granted))
}

fn map(grants: &FakeGrants, granted: u64, access: Access) -> Result<Box<dyn Mapping>, GrantError> {
    grants.map(&[reference(granted)], access)
}

fn copy(grants: &FakeGrants, granted: u64, ours: VolatileSlice<'_>, access: Access) -> Result<(), GrantError> {
    let offset = u16::try_from(granted % 4096).unwrap();
    grants.copy(&[GrantCopy { reference: reference(granted), offset, ours, access }])
}

#[test]
fn a_buffer_has_references_in_a_row_and_pages_in_any_order_are_mapped_one_behind_the_other() {
    let (memory, grants) = guest();
    memory.write(BANK, b"first");
    memory.write(BANK + 4096, b"second");
    let granted = grants.grant(BANK + 100, 4097, Access::Read);
    let first = reference(granted);

    let mapping = grants.map(&[first + 1, first], Access::Read).unwrap();
    let mut bytes = [0; 5];
    mapping.memory().subslice(4096, 5).unwrap().copy_to(&mut bytes);

    assert_eq!((granted % 4096, &bytes, mapping.memory().len()), (100, b"first", 8192));
    let counts = grants.counts();
    assert_eq!((counts.granted, counts.maps, counts.live, counts.pages), (2, 1, 1, 2));
    assert_eq!(memory.counts().calls, 0, "no frame was mapped by its number");
}

#[test]
fn what_was_not_granted_or_not_to_us_or_not_for_this_or_not_any_more_is_refused() {
    let (memory, grants) = guest();
    let read_only = grants.grant(BANK, 1, Access::Read);
    let others = grants.grant_to_another(BANK, 1, Access::Write);
    let ended = grants.grant(BANK, 1, Access::Write);
    grants.end_access(ended, 1).unwrap();
    let given_up = grants.grant(BANK + 4096, 1, Access::Write);
    memory.balloon_out(BANK + 4096, 1);
    let unknown = GRANT | 1 << 30;
    let mut ours = [0; 64];
    let ours = VolatileSlice::from(&mut ours[..]);

    for granted in [read_only, others, ended, given_up, unknown] {
        assert!(is_refused(map(&grants, granted, Access::Write), granted), "{granted:#x}");
        assert!(is_refused(copy(&grants, granted, ours, Access::Write), granted), "{granted:#x}");
    }
    drop(map(&grants, read_only, Access::Read).unwrap());
    copy(&grants, read_only, ours, Access::Read).unwrap();
    assert_eq!(grants.counts().live, 0);
}

#[test]
fn copies_go_both_ways_and_past_a_piece_that_is_refused() {
    let (memory, grants) = guest();
    memory.write(BANK + 7, b"request");
    let (source, target) = (grants.grant(BANK + 7, 7, Access::Read), grants.grant(BANK + 4096, 7, Access::Write));
    let mut ours = [0; 7];
    let ours = VolatileSlice::from(&mut ours[..]);
    let piece = |granted: u64, access| GrantCopy {
        reference: reference(granted),
        offset: u16::try_from(granted % 4096).unwrap(),
        ours,
        access,
    };

    let pieces = [piece(source, Access::Read), piece(source, Access::Write), piece(target, Access::Write)];
    assert!(is_refused(grants.copy(&pieces), source));

    let mut bytes = [0; 7];
    memory.read(BANK + 4096, &mut bytes);
    assert_eq!((&bytes, grants.counts().copies, grants.counts().pieces), (b"request", 1, 3));
}

#[test]
fn a_page_that_is_mapped_or_is_unmapped_late_is_not_to_be_had_back() {
    let (_memory, grants) = guest();
    let granted = grants.grant(BANK, 8192, Access::Write);
    let mapping = grants.map(&[reference(granted) + 1], Access::Read).unwrap();
    assert_eq!(grants.end_access(granted, 8192).unwrap_err().reference, reference(granted) + 1);

    grants.put_off_unmaps();
    drop(mapping);
    assert!(grants.end_access(granted, 8192).is_err());
    assert_eq!((grants.counts().live, grants.counts().pages), (0, 1));
    grants.finish_unmaps();
    grants.end_access(granted, 8192).unwrap();
    assert_eq!(grants.counts().pages, 0);
}

#[test]
fn what_a_hostile_guest_clears_stays_mapped_and_is_not_mapped_again() {
    let (memory, grants) = guest();
    let granted = grants.grant(BANK, 1, Access::Write);
    let mapping = map(&grants, granted, Access::Write).unwrap();
    grants.revoke(granted, 1);

    mapping.memory().copy_from(b"written all the same");
    assert_eq!(memory.load::<u8>(BANK), b'w');
    assert!(is_refused(map(&grants, granted, Access::Read), granted));
}

#[test]
fn the_nth_call_fails_as_told_and_others_do_not() {
    let (_memory, grants) = guest();
    let granted = grants.grant(BANK, 1, Access::Write);
    let mut ours = [0; 64];
    let ours = VolatileSlice::from(&mut ours[..]);
    grants.fail_call(2, GrantFailure::Busy);
    drop(map(&grants, granted, Access::Read).unwrap());
    assert!(matches!(copy(&grants, granted, ours, Access::Read), Err(GrantError::Busy)));
    copy(&grants, granted, ours, Access::Read).unwrap();
    grants.fail_call(1, GrantFailure::Errno(14));
    let failed = map(&grants, granted, Access::Read).err();
    assert!(matches!(failed, Some(GrantError::Host(error)) if error.raw_os_error() == Some(14)));
    assert_eq!(grants.counts().live, 0);
}
