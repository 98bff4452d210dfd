//! What a worker may take of the host, as far as a limit for each process can say it.
//!
//! These have none, on purpose: addresses (RLIMIT_AS), as the allocator reserves far more than it uses and memory is
//! what a control group counts; the size of files (RLIMIT_FSIZE), as an image in a format grows and its size is limited
//! by its own; locks and time, which no worker needs less of when it is busy.

use rustix::io;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors: a socket device has one for each of up to some thousand connections, all other devices have a few.
const DESCRIPTORS: u64 = 1 << 16;

/// Threads, of which each queue of a device has one, and some devices one more or a small pool.
const THREADS: u64 = 2048;

/// Bytes of locked memory: nothing is locked, but kernels since Linux 6.14 or so count the rings of io_uring, some 40 KiB for
/// each queue of a disk. Without a ring a disk works, too, by one system call after the other.
const LOCKED: u64 = 64 << 20;

/// Sets the limits, for good as soon as the process is no longer root.
///
/// # Errors
/// The kernel refuses one, which it does not do to root.
pub(super) fn set() -> io::Result<()> {
    for (resource, most) in [
        // Guest memory would be in it.
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Nproc, THREADS),
        (Resource::Memlock, LOCKED),
        (Resource::Msgqueue, 0),
    ] {
        // What the broker was started with may be less already.
        let most = getrlimit(resource).maximum.map_or(most, |now| now.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}
