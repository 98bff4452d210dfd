//! The system calls on files that no safe crate offers in the form needed here.
#![expect(
    unsafe_code,
    reason = "vectored I/O on guest memory, block device ioctls and file locks are raw system calls"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::task::Call;

/// `_IO(0x12, 119)` of <linux/fs.h>.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Makes `call` and waits for it. Returns the bytes it moved, or zero.
pub(super) fn perform(file: &File, call: &Call<'_>) -> io::Result<usize> {
    let fd = file.as_raw_fd();
    let returned = match *call {
        Call::Read { iovecs, offset } => {
            // SAFETY: the iovecs describe memory that is the task's until it advances, after this call; IOV_MAX and
            // the length of the list are kept by `Task::call`.
            unsafe { libc::preadv(fd, iovecs.as_ptr(), count(iovecs), signed(offset)?) }
        }
        Call::Write { iovecs, offset, stable } => {
            // SAFETY: as for preadv; the kernel only reads this memory.
            unsafe { libc::pwritev2(fd, iovecs.as_ptr(), count(iovecs), signed(offset)?, write_flags(stable)) }
        }
        Call::Sync => {
            // SAFETY: takes no memory.
            unsafe { libc::fdatasync(fd) as isize }
        }
        Call::Allocate { mode, span } => {
            // SAFETY: takes no memory.
            unsafe { libc::fallocate(fd, mode, signed(span.offset)?, signed(span.len)?) as isize }
        }
        Call::DiscardBlocks { span } => {
            let range = [span.offset, span.len];
            // SAFETY: BLKDISCARD reads two u64, which `range` is.
            unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) as isize }
        }
    };
    usize::try_from(returned).map_err(|_negative| io::Error::last_os_error())
}

/// The flags of `pwritev2` and of its io_uring counterpart.
pub(super) fn write_flags(stable: bool) -> libc::c_int {
    if stable { libc::RWF_DSYNC } else { 0 }
}

fn count(iovecs: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX)
}

fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_too_large| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Locks all of a file, for as long as its open file description lives, and wherever that is passed (`fcntl(2)`,
/// open file description locks).
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]: someone else holds a lock that excludes this one.
#[expect(clippy::cast_possible_truncation, reason = "the constants have one digit; the struct's types are the ABI's")]
pub(crate) fn lock(file: &File, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole_file = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one struct flock, which lives until the call returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole_file) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
