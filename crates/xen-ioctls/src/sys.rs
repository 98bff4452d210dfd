//! The system calls, and the one kind of memory area that these devices make.
#![expect(unsafe_code, reason = "ioctl and mmap")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::VolatileSlice;

/// Xen's page in bytes, whatever the host's.
pub(crate) const XEN_PAGE: usize = 4096;

/// Issues an ioctl and returns what the kernel returned, if that is not negative.
///
/// # Safety
/// `request` takes a pointer to a `T`, and every address within the argument is valid for what the
/// request does there.
pub(crate) unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u32, argument: &mut T) -> Result<u32, Errno> {
    // SAFETY: a reference is a valid pointer; the rest is this function's contract.
    unsafe { ioctl_at(fd, request, ptr::from_mut(argument)) }
}

/// As [`ioctl`], for an argument whose size the request finds in the argument itself.
///
/// # Safety
/// As [`ioctl`]; all that the request reads and writes behind `argument` is valid.
pub(crate) unsafe fn ioctl_at<T>(fd: BorrowedFd<'_>, request: u32, argument: *mut T) -> Result<u32, Errno> {
    // SAFETY: by this function's contract.
    let returned = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(request), argument) };
    u32::try_from(returned).map_err(|_negative| last_errno())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// An area of mmap on one of the device nodes that nothing is known to be mapped in yet: touching it
/// would be fatal. Unmapped whole when dropped, since these areas cannot be split.
#[derive(Debug)]
pub(crate) struct Reserved {
    base: NonNull<u8>,
    len: usize,
}

impl Reserved {
    /// `len` bytes, a multiple of the page size, at `offset` of the node.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, protection: ProtFlags, offset: u64) -> Result<Self, Errno> {
        // SAFETY: a new area that nothing refers to; the kernel chooses where.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, fd, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    /// Where it is, for the ioctl that fills it.
    pub(crate) fn address(&self) -> u64 {
        self.base.addr().get() as u64
    }

    /// Declares it filled.
    ///
    /// # Safety
    /// Every page of it has memory behind it, readable and, unless it was reserved for reading only,
    /// writable.
    pub(crate) unsafe fn filled(self) -> Mapped {
        Mapped(self)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the area is ours, whole, and slices of it borrow `Mapped`, which borrows this.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping an area of ours failed: {unmapped:?}");
    }
}

// SAFETY: an address range that any thread may unmap.
unsafe impl Send for Reserved {}
// SAFETY: a shared reference gives its address only.
unsafe impl Sync for Reserved {}

/// A filled area.
#[derive(Debug)]
pub(crate) struct Mapped(Reserved);

impl Mapped {
    /// Its memory, which someone else writes at any time.
    pub(crate) fn memory(&self) -> VolatileSlice<'_> {
        // SAFETY: filled, and mapped while `self` lives. What is accessed through it is not Rust's.
        unsafe { VolatileSlice::new(self.0.base.as_ptr(), self.0.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vm_memory::Bytes;

    #[test]
    fn an_area_is_shared_with_the_file_and_unmapped_when_dropped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let reserved = Reserved::new(file.as_fd(), 8192, ProtFlags::READ | ProtFlags::WRITE, 0).unwrap();
        let address = reserved.address();
        // SAFETY: the file is as long as the area.
        let mapped = unsafe { reserved.filled() };
        mapped.memory().write_obj(0x5au8, 4096).unwrap();
        assert!(maps_at(address));

        drop(mapped);

        assert!(!maps_at(address));
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 4096).unwrap();
        assert_eq!(byte, [0x5a]);
    }

    fn maps_at(address: u64) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| line.starts_with(&format!("{address:x}-")))
    }

    #[test]
    fn an_ioctl_the_file_does_not_know_says_so() {
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: /dev/null has no ioctls.
        let refused = unsafe { ioctl(null.as_fd(), crate::abi::linux_privcmd::RESTRICT, &mut 0u16) };
        assert_eq!(refused, Err(Errno::NOTTY));
    }
}
