//! I/O between a descriptor and guest memory, without a copy on the way.
#![expect(unsafe_code, reason = "readv and writev take addresses, and those of guest memory are no slices")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};

use smallvec::SmallVec;

use crate::Buffers;

/// A stretch of a request's memory.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The memory.
    pub buffers: &'a Buffers,
    /// The first byte, counted through all buffers.
    pub at: usize,
    /// Bytes, at most; a part ends where the memory does.
    pub len: usize,
}

/// The most buffers that one call takes (`UIO_MAXIOV` of <linux/uio.h>).
const MOST_BUFFERS: usize = 1024;

/// Reads into `head`, and what it does not hold into `parts`, in one `readv`. Returns how many bytes it was.
///
/// # Errors
/// As of `readv(2)`, except for EINTR, upon which it tries again. [`ErrorKind::InvalidInput`]: more than 1,024 buffers.
pub fn read_vectored(fd: impl AsFd, head: &mut [u8], parts: &[Part<'_>]) -> io::Result<usize> {
    let iovecs = gather(head.as_mut_ptr().cast(), head.len(), parts)?;
    let (fd, count) = (fd.as_fd().as_raw_fd(), count(&iovecs));
    // SAFETY: the first buffer is `head`, borrowed for writing; the others lie in guest memory that stays mapped as long
    // as the `Buffers` in `parts` are borrowed, and may be written by anyone at any time. All outlive the call.
    until_uninterrupted(|| unsafe { libc::readv(fd, iovecs.as_ptr(), count) })
}

/// Writes `head`, then `parts`, in one `writev`. Returns how many bytes it was.
///
/// # Errors
/// As of `writev(2)`, except for EINTR, upon which it tries again. [`ErrorKind::InvalidInput`]: more than 1,024 buffers.
pub fn write_vectored(fd: impl AsFd, head: &[u8], parts: &[Part<'_>]) -> io::Result<usize> {
    let iovecs = gather(head.as_ptr().cast_mut().cast(), head.len(), parts)?;
    let (fd, count) = (fd.as_fd().as_raw_fd(), count(&iovecs));
    // SAFETY: as for `read_vectored`; the kernel only reads.
    until_uninterrupted(|| unsafe { libc::writev(fd, iovecs.as_ptr(), count) })
}

fn gather(head: *mut libc::c_void, len: usize, parts: &[Part<'_>]) -> io::Result<SmallVec<[libc::iovec; 24]>> {
    let head = (len > 0).then_some(libc::iovec { iov_base: head, iov_len: len });
    let parts = parts.iter().flat_map(|part| part.buffers.pieces(part.at, part.len));
    let iovecs: SmallVec<_> = head.into_iter().chain(parts).take(MOST_BUFFERS + 1).collect();
    if iovecs.len() > MOST_BUFFERS {
        return Err(io::Error::new(ErrorKind::InvalidInput, "more than 1,024 buffers in one call"));
    }
    Ok(iovecs)
}

fn count(iovecs: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX)
}

fn until_uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()).map_err(|_negative| io::Error::last_os_error()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
