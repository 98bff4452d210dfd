//! What a driver can do, as bytes spell it.

use arbitrary::Arbitrary;

/// The disk that is served.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) io_uring: bool,
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    pub(crate) cache: Cache,
    pub(crate) event_idx: bool,
    pub(crate) features: u64,
}

/// When a write counts as done, and through which memory it goes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Cache {
    Writeback,
    Writethrough,
    Direct,
}

/// One thing that a driver does.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Move {
    /// A request as an honest driver makes it, though it may ask for nonsense.
    Request(Request),
    /// A descriptor of the queue's table, as it comes.
    Descriptor { slot: u8, descriptor: Descriptor },
    /// A descriptor of one of the indirect tables.
    Indirect { table: u8, slot: u8, descriptor: Descriptor },
    /// A chain is made available that begins anywhere.
    Publish { head: u8 },
    /// The driver's index jumps.
    Jump { by: u16 },
    /// Some bytes anywhere in memory, the rings included.
    Scribble { at: u32, value: u64 },
    /// The device hears of what there is, and all that it takes of it is waited for.
    Kick,
    /// Configuration space is written.
    WriteConfig { offset: u8, data: [u8; 8], len: u8 },
    /// Configuration space is read.
    ReadConfig { offset: u8, len: u8 },
    /// The device is reset and started anew.
    Reset { features: u64, event_idx: bool },
}

/// An honest request. Its parts are in memory that nothing else uses.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) sector: Sector,
    /// Bytes of data, modulo a limit, if they are no whole number of sectors.
    pub(crate) len: Len,
    /// Into how many descriptors each part is cut.
    pub(crate) cuts: u8,
    pub(crate) indirect: bool,
    /// For discards and write-zeroes.
    pub(crate) flags: u8,
    /// The device hears of it at once.
    pub(crate) kick: bool,
}

/// The type of a request (virtio 1.2 §5.2.6).
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Other(u32),
}

/// Where a request is about.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Sector {
    Within(u8),
    Any(u64),
}

/// How much a request is about.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Len {
    Sectors(u8),
    Bytes(u16),
}

/// A descriptor (§2.7.5) that may say anything.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) addr: Address,
    pub(crate) len: Length,
    pub(crate) flags: u8,
    pub(crate) next: u8,
}

/// Where a buffer is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Address {
    /// In the memory for data, at so many bytes.
    Data(u16),
    /// One of the indirect tables.
    Table(u8),
    /// Anywhere in memory.
    Memory(u32),
    /// Anywhere.
    Any(u64),
}

/// How long a buffer is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Length {
    Header,
    Sectors(u8),
    Small(u8),
    Any(u32),
}

impl Kind {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(number) => number,
        }
    }
}
