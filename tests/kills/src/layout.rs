//! Where things are in the guest's memory.

/// Guest address of the first byte.
pub(crate) const BASE: u64 = 0x4000_0000;

/// Queues of the disk, each worked by a lane of its own.
pub(crate) const QUEUES: u16 = 2;

/// Entries of a queue.
pub(crate) const QUEUE_SIZE: u16 = 64;

/// Descriptors of a request, at most: header, segment or data in two pieces, status.
pub(crate) const PARTS: u16 = 4;

/// Requests of a queue at a time. A request is known by its slot.
pub(crate) const SLOTS: u16 = QUEUE_SIZE / PARTS;

/// Bytes of a slot's data.
pub(crate) const DATA_BYTES: usize = 16 << 10;

// Within a queue's part, in bytes from its start.
pub(crate) const DESCRIPTORS: usize = 0;
pub(crate) const AVAILABLE: usize = 0x1000;
pub(crate) const USED: usize = 0x2000;
pub(crate) const TABLES: usize = 0x3000;
pub(crate) const HEADERS: usize = 0x4000;
pub(crate) const DATA: usize = 0x5000;
pub(crate) const QUEUE_BYTES: usize = DATA + SLOTS as usize * DATA_BYTES;

/// Bytes of an indirect table, and of a header with what belongs to it.
pub(crate) const TABLE: usize = 16 * PARTS as usize;
pub(crate) const HEADER: usize = 64;

// Within a header's place.
pub(crate) const SEGMENT: usize = 16;
pub(crate) const STATUS: usize = 32;

/// Bytes of all memory.
pub(crate) const BYTES: usize = QUEUES as usize * QUEUE_BYTES;
