//! Memory of our own: in the place of a guest's, or shared with another process.
#![expect(unsafe_code, reason = "maps and unmaps")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use crate::{Mapping, address::PAGE_LEN};

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
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
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

/// Memory that another process may map, too, by the descriptor that it is handed or has handed over.
pub struct SharedMemory {
    mapping: AnonymousMapping,
    file: OwnedFd,
}

impl SharedMemory {
    /// `len` zeroed bytes, at least one; pages take memory from the first access on. The kernel shows it by `name`. It
    /// cannot shrink, so that nobody's access to it ends in SIGBUS. Fails like memfd_create(2) and mmap(2).
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mapping = AnonymousMapping::map(len, libc::MAP_SHARED, file.as_raw_fd(), 0)?;
        Ok(Self { mapping, file })
    }

    /// What another process has made: `len` bytes of `file`, at least one, from `offset` on, a multiple of the page
    /// size. The rest of the last page is there, too, whether the file has it or not. An access to pages that the file
    /// does not have, or no longer, ends in SIGBUS. Fails like mmap(2).
    pub fn of(file: OwnedFd, offset: u64, len: usize) -> io::Result<Self> {
        let too_large = |_| io::Error::from(Errno::OVERFLOW);
        let offset = libc::off_t::try_from(offset).map_err(too_large)?;
        let len = len.checked_next_multiple_of(PAGE_LEN).ok_or(Errno::OVERFLOW)?;
        let mapping = AnonymousMapping::map(len, libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd(), offset)?;
        Ok(Self { mapping, file })
    }
}

impl Mapping for SharedMemory {
    fn memory(&self) -> VolatileSlice<'_> {
        self.mapping.memory()
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn who_has_the_descriptor_sees_what_is_written_and_cannot_take_memory_away() {
        let shared = SharedMemory::new("test", 8192).unwrap();

        shared.memory().write_obj(0x1234_5678_u32, 4096).unwrap();

        let mut seen = [0; 4];
        rustix::io::pread(&shared, &mut seen, 4096).unwrap();
        assert_eq!(u32::from_ne_bytes(seen), 0x1234_5678);
        assert_eq!(ftruncate(&shared, 4096), Err(Errno::PERM));
    }

    #[test]
    fn of_a_file_that_ends_within_a_page_the_whole_page_is_there() {
        let file = memfd_create("theirs", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 3 * 4096 + 100).unwrap();
        rustix::io::pwrite(&file, &[7; 100], 3 * 4096).unwrap();

        let shared = SharedMemory::of(file, 2 * 4096, 4096 + 100).unwrap();

        assert_eq!(shared.memory().len(), 2 * 4096);
        assert_eq!(shared.memory().read_obj::<[u8; 2]>(4096 + 99).unwrap(), [7, 0]);
        shared.memory().write_obj(9_u8, 0).unwrap();
        let mut seen = [0];
        rustix::io::pread(&shared, &mut seen, 2 * 4096).unwrap();
        assert_eq!(seen, [9]);
    }

    #[test]
    fn a_file_is_not_mapped_from_within_a_page_or_beyond_all_files() {
        let file = || memfd_create("theirs", MemfdFlags::CLOEXEC).unwrap();
        assert!(SharedMemory::of(file(), 100, 4096).is_err());
        assert!(SharedMemory::of(file(), u64::MAX - 4095, 4096).is_err());
        assert!(SharedMemory::of(file(), 0, usize::MAX).is_err());
        assert!(SharedMemory::of(file(), 0, 0).is_err());
    }
}
