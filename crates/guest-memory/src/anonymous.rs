//! Memory of our own in the place of a guest's.
#![expect(unsafe_code, reason = "maps and unmaps")]

use std::{io, ptr};

use vm_memory::VolatileSlice;

use crate::Mapping;

/// Zeroed, page-aligned memory of this process.
pub struct AnonymousMapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to the process, not to a thread.
unsafe impl Send for AnonymousMapping {}
// SAFETY: shared, it lends volatile slices only.
unsafe impl Sync for AnonymousMapping {}

impl AnonymousMapping {
    /// `len` bytes, at least one. Fails like mmap(2).
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { base: base.cast(), len }) }
    }
}

impl Mapping for AnonymousMapping {
    fn memory(&self) -> VolatileSlice<'_> {
        // SAFETY: mapped with this length until drop.
        unsafe { VolatileSlice::new(self.base, self.len) }
    }
}

impl Drop for AnonymousMapping {
    fn drop(&mut self) {
        // SAFETY: ours, whole, and nothing borrows it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
