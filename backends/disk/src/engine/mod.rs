//! Host I/O: operations on one open file, by tag. Knows no virtio.
//!
//! An engine owns the guest memory of each operation until it hands it back, so nothing the kernel still works on can
//! be unmapped. What an operation takes (short transfers, bounce buffers, calls the file system lacks) is decided in
//! `task`, once for all engines; they differ only in how a call reaches the kernel. One lane's thread owns an engine.

mod bounce;
mod calls;
mod plain;
pub(crate) mod pool;
mod runs;
mod task;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Once};

use guest_memory::Buffers;

pub(crate) use calls::lock;
pub use plain::Plain;
pub use uring::Uring;

use crate::EngineKind;

/// The file that an engine works on.
#[derive(Clone, Debug)]
pub struct Target {
    /// Open for what the operations need.
    pub file: Arc<File>,
    /// It is a block device, not a regular file.
    pub is_block_device: bool,
    /// It was opened with O_DIRECT: the alignment in bytes, a power of two, of memory, offsets and lengths.
    pub direct_alignment: Option<usize>,
    /// What must stay open as long as the kernel works for this process.
    pub turn: Option<Arc<File>>,
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it starts.
    pub offset: u64,
    /// How long it is; not zero.
    pub len: u64,
}

/// Memory to read from or write to a span of the disk.
#[derive(Debug)]
pub struct Transfer {
    /// Owned by the engine until the operation is done.
    pub memory: Buffers,
    /// Offset in `memory` of the first byte to move.
    pub at: usize,
    /// Where on the disk, and how much; as much lies in `memory`.
    pub span: Span,
}

/// What an engine can be asked to do.
#[derive(Debug)]
pub enum Op {
    /// Disk to memory.
    Read(Transfer),
    /// Memory to disk.
    Write {
        /// What to move.
        transfer: Transfer,
        /// It must be on persistent storage when it is done.
        stable: bool,
    },
    /// Brings every write that is done to persistent storage.
    Flush,
    /// The contents do not matter any more. A hint: storage that cannot use it says so to nobody.
    Discard(Span),
    /// Reads give zeroes afterwards.
    WriteZeroes {
        /// Where.
        span: Span,
        /// The storage behind it may be given back.
        may_unmap: bool,
        /// As for a write.
        stable: bool,
    },
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Done {
    /// As given to [`Engine::submit`].
    pub tag: u16,
    /// The memory of a transfer; else empty.
    pub memory: Buffers,
    /// Whether all of it was done.
    pub result: io::Result<()>,
}

/// A way to have the host do I/O. Dropping it waits until the kernel has let go of all memory.
pub trait Engine: Send {
    /// Takes an operation; it may start only with the next [`Engine::kick`].
    ///
    /// # Errors
    /// The tag is in use or not below the engine's depth: a bug of the caller.
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()>;

    /// Starts what was submitted and collects what has ended, without waiting.
    ///
    /// # Errors
    /// The host has stopped serving this engine at all; failed operations are [`Done`].
    fn kick(&mut self) -> io::Result<()>;

    /// The next operation that has ended, of those collected.
    fn reap(&mut self) -> Option<Done>;

    /// As [`Engine::kick`], but waits for an operation to end if none has and one is under way.
    ///
    /// # Errors
    /// As [`Engine::kick`].
    fn wait(&mut self) -> io::Result<()>;

    /// Becomes readable, edge by edge, when a kick would collect something.
    fn source(&self) -> Option<BorrowedFd<'_>>;

    /// Operations submitted and not reaped.
    fn in_flight(&self) -> usize;
}

/// Makes the engine asked for, or the plain one where the host refuses io_uring. `depth` is the number of tags.
pub fn open(kind: EngineKind, target: &Target, depth: u16) -> Box<dyn Engine> {
    if kind == EngineKind::IoUring {
        match Uring::new(target.clone(), depth) {
            Ok(engine) => return Box::new(engine),
            Err(error) => SAID_ONCE.call_once(|| say_without_io_uring(&error)),
        }
    }
    Box::new(Plain::new(target.clone(), depth))
}

/// A guest can start its disk as often as it likes; the host stays the same.
static SAID_ONCE: Once = Once::new();

fn say_without_io_uring(error: &io::Error) {
    tracing::warn!(
        name: "disk.no_io_uring", %error,
        "io_uring is not available; disks are served by plain system calls (see sysctl kernel.io_uring_disabled)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let file = Arc::new(tempfile::tempfile().unwrap());
        Target { file, is_block_device: false, direct_alignment: None, turn: None }
    }

    fn engines() -> [Box<dyn Engine>; 2] {
        [EngineKind::Plain, EngineKind::IoUring].map(|kind| open(kind, &target(), 2))
    }

    #[test]
    fn a_tag_that_there_is_not_is_refused() {
        for mut engine in engines() {
            assert_eq!(engine.submit(2, Op::Flush).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(engine.in_flight(), 0);
        }
    }

    #[test]
    fn a_tag_of_the_ring_is_in_use_until_it_is_reaped() {
        let mut engine = Uring::new(target(), 1).unwrap();
        engine.submit(0, Op::Flush).unwrap();
        assert_eq!(engine.submit(0, Op::Flush).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        engine.wait().unwrap();
        assert!(engine.reap().is_some());
        assert!(engine.submit(0, Op::Flush).is_ok());
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_is_under_way_or_something_has_ended() {
        for mut engine in engines() {
            engine.wait().unwrap();
            assert!(engine.reap().is_none());

            engine.submit(0, Op::Flush).unwrap();
            engine.wait().unwrap();
            engine.wait().unwrap();
            assert_eq!(engine.reap().map(|done| done.tag), Some(0));
            assert_eq!(engine.in_flight(), 0);
        }
    }
}
