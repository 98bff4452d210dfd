//! What a worker is started with: standard input, output and error, and no other descriptor of its broker's.
#![expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]

use std::io;

/// The first that is not standard input, output or error.
const FIRST: libc::c_uint = 3;

/// Has all descriptors but the standard ones closed by exec. All that we open are as it is; this is for those that
/// whoever started the broker has left open.
///
/// # Errors
/// The kernel is older than Linux 5.11.
pub(super) fn close_at_exec() -> io::Result<()> {
    // SAFETY: nothing is closed here; a flag of each descriptor is set, which no owner of one relies on to be clear.
    match unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
