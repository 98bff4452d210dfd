//! Memory of our own in the place of granted pages that are copied.
#![expect(unsafe_code, reason = "allocates by alignment, and lends what is allocated as raw memory")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ptr::NonNull,
};

use vm_memory::VolatileSlice;

use crate::{AccessError, address::PAGE_LEN, budget::Reservation};

/// Zeroed memory that starts at a page.
pub(crate) struct Scratch {
    base: NonNull<u8>,
    layout: Layout,
    /// Of the budget.
    _reservation: Reservation,
}

// SAFETY: the memory belongs to the process, not to a thread.
unsafe impl Send for Scratch {}
// SAFETY: shared, it lends volatile slices only.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// `len` bytes; they are what `reservation` is for.
    pub(crate) fn new(len: usize, reservation: Reservation) -> Result<Self, AccessError> {
        // Not zero, which the allocator must not be asked for.
        let layout = Layout::from_size_align(len.max(1), PAGE_LEN).map_err(|_too_large| AccessError::Busy)?;
        // SAFETY: the layout has a size.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(AccessError::Busy)?;
        Ok(Self { base, layout, _reservation: reservation })
    }

    pub(crate) fn memory(&self) -> VolatileSlice<'_> {
        // SAFETY: allocated with this size until drop.
        unsafe { VolatileSlice::new(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nothing borrows it any more.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Where a piece of `len` bytes may start in scratch memory of which `used` bytes are taken: aligned so that what comes in
/// sectors or pages can be read and written with O_DIRECT.
pub(crate) fn place(used: usize, len: usize) -> usize {
    let alignment = match len {
        PAGE_LEN.. => PAGE_LEN,
        512.. => 512,
        _ => 16,
    };
    used.next_multiple_of(alignment)
}
