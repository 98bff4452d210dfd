//! The machine's memory in the place of which tests have a file: mapped whole for the guest's CPU and piecewise for us.
#![expect(unsafe_code, reason = "maps pages of a memfd one behind the other")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
};

use guest_memory::{Access, PAGE_SIZE};
use vm_memory::VolatileSlice;

/// [`PAGE_SIZE`] as a length in our own memory.
pub(crate) const PAGE_LEN: usize = 4096;

/// The machine's pages, in a sparse file.
pub(crate) struct Pages {
    pub(crate) file: OwnedFd,
    pub(crate) count: u64,
    whole: Area,
}

impl Pages {
    pub(crate) fn new(count: u64) -> Self {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd_create");
        rustix::fs::ftruncate(&file, count * PAGE_SIZE).expect("a sparse file of any size");
        let whole = Area::reserve(usize::try_from(count).expect("a 64-bit host")).expect("address space");
        whole.show(0, &file, 0, whole.pages(), Access::Write).expect("mapping a memfd");
        Self { file, count, whole }
    }

    /// Pages as the guest's CPU sees them: `len` bytes, `offset` bytes from the start of the file.
    pub(crate) fn slice(&self, offset: u64, len: usize) -> VolatileSlice<'_> {
        let offset = usize::try_from(offset).expect("a 64-bit host");
        self.whole.memory().subslice(offset, len).expect("within the file")
    }

    /// Maps `pages` one behind the other, with a call for each run of them that the file has in a row. Who writes to what
    /// is mapped for reading is killed.
    pub(crate) fn map(&self, pages: &[u64], access: Access) -> io::Result<Area> {
        let area = Area::reserve(pages.len())?;
        let mut at = 0;
        for run in pages.chunk_by(|low, high| low + 1 == *high) {
            let first = run.first().copied().unwrap_or_default();
            area.show(at, &self.file, first, run.len(), access)?;
            at += run.len();
        }
        Ok(area)
    }
}

/// Reserved address space, unmapped by drop.
pub(crate) struct Area {
    base: *mut libc::c_void,
    len: usize,
}

// SAFETY: address space belongs to the process, not to a thread.
unsafe impl Send for Area {}
// SAFETY: shared, it lends volatile slices only.
unsafe impl Sync for Area {}

impl Area {
    fn reserve(pages: usize) -> io::Result<Self> {
        let len = pages * PAGE_LEN;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { base, len }) }
    }

    fn pages(&self) -> usize {
        self.len / PAGE_LEN
    }

    /// Shows `count` pages of `file` from its `page` on, `at` pages from the start.
    fn show(&self, at: usize, file: &OwnedFd, page: u64, count: usize, access: Access) -> io::Result<()> {
        assert!(at + count <= self.pages(), "outside of the reserved area");
        let address = self.base.wrapping_byte_add(at * PAGE_LEN);
        let offset = i64::try_from(page * PAGE_SIZE).expect("within the file");
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: replaces pages of our own reservation, checked above.
        let shown = unsafe { libc::mmap(address, count * PAGE_LEN, protection, flags, file.as_raw_fd(), offset) };
        if shown == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn memory(&self) -> VolatileSlice<'_> {
        // SAFETY: mapped with this length until drop; `Pages` shows something at every page before it gives it out.
        unsafe { VolatileSlice::new(self.base.cast(), self.len) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: ours, whole, and nothing borrows it any more.
        unsafe { libc::munmap(self.base, self.len) };
    }
}
