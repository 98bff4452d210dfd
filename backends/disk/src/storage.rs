//! What a disk's bytes are kept in: a file as it is, an image in a format, something across a network.
//!
//! A [`Storage`] is the whole of what a disk knows of its host's end. It tells its measures, and gives each lane an
//! [`Engine`] of its own; of requests, queues and guests it knows nothing.

use std::io;

use virtio_backend::Record;

use crate::EngineKind;
use crate::engine::Engine;

/// Something that holds a disk's contents, opened and locked.
pub trait Storage: Send + Sync + 'static {
    /// What messages call it: its path, its address.
    fn name(&self) -> &str;

    /// Its measures when it was opened.
    fn geometry(&self) -> Geometry;

    /// Its size in bytes, now: it may have grown.
    ///
    /// # Errors
    /// It cannot be asked.
    fn size(&self) -> io::Result<u64>;

    /// Brings everything written to persistent storage, once no lane has an engine any more and the disk goes away for
    /// good. Comes back within seconds whatever the storage does.
    ///
    /// # Errors
    /// Some of it may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Told before all else, if a process may follow this one or have been before it: what that leaves in flight must not
    /// come behind what this one does.
    fn follow(&self, _record: &Record) {}

    /// Makes the engine of a lane, on that lane's thread, for tags below `depth`, which is not zero.
    ///
    /// # Errors
    /// The host does not give what an engine needs.
    fn open_engine(&self, kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>>;

    /// What it counts, beside what every disk counts: names in `snake_case`, since it was opened.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The measures of a storage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// A multiple of `block_size`; not zero.
    pub size: u64,
    /// The logical block size, a power of two of at least 512.
    pub block_size: u32,
    /// The size in which it works best: a multiple of `block_size` by a power of two.
    pub physical_block_size: u32,
    /// The size of transfers that it likes best; zero if it has none.
    pub optimal_io_size: u32,
    /// Where the first physical block starts that is whole; zero if that is the start.
    pub alignment_offset: u32,
    /// What can be given back of it: pieces of so much at such multiples; zero if nothing can.
    pub discard_granularity: u32,
    /// The most that one discard gives back; `u64::MAX` if there is no such limit.
    pub max_discard: u64,
    /// What offsets and lengths of transfers have to be multiples of beyond `block_size`: O_DIRECT's alignment.
    pub direct_alignment: Option<usize>,
    /// It cannot be written.
    pub read_only: bool,
    /// How many lanes may have an engine at a time without one missing what another has flushed.
    pub max_queues: u16,
}
