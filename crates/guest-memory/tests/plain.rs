//! Memory that is mapped already, in regions.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod fixture;

use std::sync::Arc;

use fixture::{BANK, contents, pattern, pin};
use guest_memory::{
    AccessError, AnonymousMapping, Budget, CHUNK_SIZE, LayoutError, MapCache, Mapping, PAGE_SIZE, PlainMemory, View,
};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

fn view(memory: PlainMemory) -> View {
    View::new(MapCache::new(memory, Budget::default()))
}

fn region(start: u64, len: usize) -> (u64, Arc<dyn Mapping>) {
    (start, Arc::new(AnonymousMapping::new(len).unwrap()))
}

#[test]
fn regions_are_reached_at_their_guest_addresses() {
    let regions = [region(BANK + 0x20_0000, 0x1_0000), region(BANK, 0x1_0000)];
    let high = regions[0].1.clone();
    let view = view(PlainMemory::new(regions).unwrap());

    view.write_obj(0x1234_u16, GuestAddress(BANK + 0x20_0000 + 6)).unwrap();

    assert_eq!(high.memory().read_obj::<u16>(6).unwrap(), 0x1234);
    assert!(view.write_obj(0_u8, GuestAddress(BANK + 0x1_0000)).is_err());
}

#[test]
fn b03_a_buffer_across_regions_that_meet_inside_a_chunk_is_one_for_the_caller() {
    let middle = BANK + 3 * PAGE_SIZE;
    let memory = PlainMemory::anonymous(&[(BANK, 3 * 4096), (middle, 20 * 4096)]).unwrap();
    let view = view(memory);
    let buffers = pin(&view, BANK + 100, 80_000).unwrap();
    let bytes = pattern(80_000);

    buffers.write(0, &bytes);

    assert_eq!(contents(&buffers), bytes);
    let mut read = vec![0; 80_000];
    view.read_slice(&mut read, GuestAddress(BANK + 100)).unwrap();
    assert_eq!(read, bytes);
    assert_eq!(buffers.iovecs().len(), 3, "first region, rest of the chunk, next chunk");
    assert!(matches!(pin(&view, middle + 20 * 4096, 1), Err(AccessError::Hole { .. })));
}

#[test]
fn requests_keep_their_region_when_the_table_of_regions_is_replaced() {
    let regions = [region(BANK, 0x1_0000)];
    let kept = Arc::downgrade(&regions[0].1);
    let view = view(PlainMemory::new(regions).unwrap());
    let buffers = pin(&view, BANK, 10).unwrap();

    drop(view);

    assert_eq!(buffers.write(0, b"still here"), 10);
    assert!(kept.upgrade().is_some());
    drop(buffers);
    assert!(kept.upgrade().is_none());
}

#[test]
fn plain_memory_is_for_direct_io() {
    let view = view(PlainMemory::anonymous(&[(BANK, 0x1_0000)]).unwrap());
    let buffers = pin(&view, BANK + 4096, 8192).unwrap();
    assert!(buffers.direct_io_capable());
    assert!(buffers.is_aligned_to(4096), "guest alignment is host alignment");
}

#[test]
fn layouts_that_make_no_sense_are_refused_with_the_place() {
    let refused = |ranges: &[(u64, usize)]| match PlainMemory::anonymous(ranges) {
        Ok(_) => panic!("{ranges:x?} was accepted"),
        Err(error) => error,
    };
    assert!(matches!(refused(&[(BANK + 1, 4096)]), LayoutError::NotPages { .. }));
    assert!(matches!(refused(&[(BANK, 100)]), LayoutError::NotPages { len: 100, .. }));
    assert!(matches!(refused(&[(BANK, 0)]), LayoutError::Allocate(_)));
    assert!(matches!(refused(&[((1 << 63) - 4096, 8192)]), LayoutError::TooHigh { .. }));
    assert!(matches!(refused(&[(1 << 63, 4096)]), LayoutError::TooHigh { .. }));
    assert!(matches!(refused(&[(u64::MAX - 4095, 4096)]), LayoutError::TooHigh { .. }));
    let overlap = refused(&[(BANK + 4096, 4096), (BANK, 8192)]);
    assert_eq!(overlap.to_string(), format!("Two memory regions overlap at {:#x}", BANK + 4096));
    assert!(PlainMemory::anonymous(&[((1 << 63) - 4096, 4096)]).is_ok());
}

#[test]
fn many_chunks_of_one_region_can_be_held_at_once() {
    let memory = PlainMemory::anonymous(&[(BANK, 1 << 20)]).unwrap();
    let view = view(memory);
    let slices: Vec<VolatileSlice<'_>> = (0..16)
        .map(|n| {
            use vm_memory::GuestMemory;
            let at = GuestAddress(BANK + n * CHUNK_SIZE);
            view.get_slices(at, 8, vm_memory::Permissions::Write).unwrap().next().unwrap().unwrap()
        })
        .collect();
    for (n, slice) in (0_u64..).zip(&slices) {
        slice.write_obj(n, 0).unwrap();
    }
    for (n, slice) in (0_u64..).zip(&slices) {
        assert_eq!(slice.read_obj::<u64>(0).unwrap(), n);
    }
}
