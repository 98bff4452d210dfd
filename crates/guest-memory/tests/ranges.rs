//! Ranges of every make, against what a guest has: rows B01 to B03 of the table of hostile inputs. `hostile.rs` has those
//! rows one by one, and the others.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]

mod fixture;

use fixture::{BANK, cached, contents};
use guest_memory::{Access, AccessError, Budget, Buffers, CHUNK_SIZE, PAGE_SIZE};
use testkit::cases::each;
use testkit::memory::FakeForeignMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Where a guest has memory: banks, none of them empty, in order.
type Layout = &'static [(u64, u64)];

const LAYOUTS: [Layout; 7] = [
    &[(BANK, 0x10_0000)],
    // One page, in the middle of a chunk.
    &[(BANK + 7 * PAGE_SIZE, PAGE_SIZE)],
    // Banks that meet at a chunk's border, within a chunk, and not at all.
    &[(BANK, CHUNK_SIZE), (BANK + CHUNK_SIZE, CHUNK_SIZE)],
    &[(BANK, 5 * PAGE_SIZE), (BANK + 5 * PAGE_SIZE, 0x2_0000)],
    &[(BANK, 5 * PAGE_SIZE), (BANK + 6 * PAGE_SIZE, 0x2_0000)],
    // From address 0 on, and as high as an Arm guest's second bank is and beyond.
    &[(0, 0x2_0000), (1 << 33, 0x2_0000)],
    &[((1 << 40) - CHUNK_SIZE, CHUNK_SIZE), ((1 << 47) - PAGE_SIZE, 2 * PAGE_SIZE)],
];

const LENGTHS: [usize; 16] =
    [0, 1, 2, 3, 8, 511, 4095, 4096, 4097, 8192, 0xffff, 0x1_0000, 0x1_0001, 0x2_0001, 0xffff_ffff, usize::MAX];

/// Addresses of interest: around the ends of banks, of their chunks and pages, and where no guest has memory.
fn addresses(layout: Layout) -> Vec<u64> {
    let mut addresses =
        vec![0, 1, 0x200_0000, 0x3800_0000, 1 << 48, 1 << 52, (1 << 63) - 1, u64::MAX - 0xfff, u64::MAX];
    for (start, len) in layout {
        let (end, chunk) = (start + len, (start + CHUNK_SIZE) & !(CHUNK_SIZE - 1));
        for edge in [*start, end, chunk, start + PAGE_SIZE] {
            addresses.extend([edge.wrapping_sub(4096), edge.wrapping_sub(8), edge.wrapping_sub(1)]);
            addresses.extend([edge, edge + 1, edge + 8]);
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The first address of the range that is not memory.
fn first_hole(layout: Layout, address: u64, len: u64) -> Option<u64> {
    let mut at = address;
    while at < address + len {
        match layout.iter().find(|(start, len)| (*start..start + len).contains(&at)) {
            Some((start, len)) => at = start + len,
            None => return Some(at),
        }
    }
    None
}

/// What memory holds from `address` on.
fn pattern(address: u64, len: usize) -> Vec<u8> {
    (0..=250).cycle().skip((address % 251) as usize).take(len).collect()
}

#[test]
fn b01_b02_b03_any_range_of_any_layout_is_reached_where_it_is_memory_and_named_where_it_is_not() {
    for layout in LAYOUTS {
        let (guest, cache, mut view) = cached(FakeForeignMemory::new(layout), Budget::default());
        layout.iter().for_each(|(start, len)| guest.write(*start, &pattern(*start, *len as usize)));
        let inputs = addresses(layout).into_iter().flat_map(|address| LENGTHS.map(|len| (layout, address, len)));
        let inputs = inputs.flat_map(|(layout, address, len)| {
            [Access::Read, Access::Write].map(|access| (layout, address, len, access))
        });
        each(inputs, |(_, address, len, access)| {
            let mut buffers = Buffers::new();
            let calls = guest.counts().calls;
            let pinned = view.pin(&[(GuestAddress(address), len)], access, &mut buffers);
            let calls = guest.counts().calls - calls;
            let is_reachable = view.check_range(GuestAddress(address), len, Permissions::ReadWrite);
            if len == 0 {
                assert!(pinned.is_ok() && buffers.is_empty() && is_reachable);
                return;
            }
            // Bit 63 names a grant, of which there are none here.
            if address >> 63 != 0 || address.checked_add(len as u64).is_none() || len > 1 << 24 {
                assert!(pinned.is_err() && !is_reachable);
                assert_eq!(calls, 0, "mapped before it was looked at");
            } else {
                match (first_hole(layout, address, len as u64), pinned) {
                    (None, Ok(())) => {
                        assert!(is_reachable);
                        let bytes = pattern(address, len);
                        assert!(contents(&buffers) == bytes, "other memory");
                        let mut read = vec![0; len];
                        view.read_slice(&mut read, GuestAddress(address)).unwrap();
                        assert!(read == bytes, "other memory");
                    }
                    (Some(hole), Err(AccessError::Hole { address })) => {
                        assert_eq!((address, is_reachable, buffers.len()), (hole, false, 0));
                    }
                    (hole, pinned) => panic!("hole {hole:x?}, and {pinned:?}"),
                }
            }
            drop(buffers);
            view.flush();
            assert_eq!(cache.stats().bytes_pinned, 0);
        });
    }
}

#[test]
fn b02_ranges_in_several_pieces_are_held_to_the_same_as_one() {
    let (_guest, cache, mut view) = cached(FakeForeignMemory::new(&[(BANK, 0x4_0000)]), Budget::default());
    let good = [(BANK, 1), (BANK + 0xffff, 2), (BANK + 0x3_f000, 0x1000)];
    let bad = [(BANK + 0x4_0000, 1), (BANK + 0x3_ffff, 2), (u64::MAX, 2), (BANK, usize::MAX), (0, 16), (1 << 63, 4)];
    let places = 0..4;
    each(bad.iter().flat_map(|bad| places.clone().map(move |place| (*bad, place))), |(bad, place)| {
        let mut pieces: Vec<_> = good.iter().map(|(address, len)| (GuestAddress(*address), *len)).collect();
        let mut buffers = Buffers::new();
        view.pin(&pieces, Access::Write, &mut buffers).unwrap();
        assert_eq!(buffers.len(), 0x1003);

        pieces.insert(place, (GuestAddress(bad.0), bad.1));
        view.pin(&pieces, Access::Write, &mut buffers).unwrap_err();
        view.flush();

        assert_eq!((buffers.len(), cache.stats().bytes_pinned), (0, 0), "all or nothing");
    });
}
