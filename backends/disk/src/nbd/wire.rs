//! What goes over the wire, by the names of the protocol's description (doc/proto.md of the NBD project): big-endian, packed.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `NBDMAGIC`, the server's first eight bytes.
pub(super) const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// `IHAVEOPT`: a newstyle server's next eight, and the start of every option.
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// What an oldstyle server has in its place.
pub(super) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the server's and, by the same bits, the client's.
pub(super) mod handshake {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Options that a client haggles about.
pub(super) mod option {
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
}

/// Types of replies to options; those of errors have the highest bit set.
pub(super) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const IS_ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = IS_ERROR | 1;
    pub(crate) const ERR_POLICY: u32 = IS_ERROR | 2;
    pub(crate) const ERR_TLS_REQD: u32 = IS_ERROR | 5;
    pub(crate) const ERR_UNKNOWN: u32 = IS_ERROR | 6;
    pub(crate) const ERR_SHUTDOWN: u32 = IS_ERROR | 7;
}

/// Kinds of information in replies to INFO and GO.
pub(super) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub(super) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Requests.
pub(super) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;

    /// Flag: durable when it is answered.
    pub(crate) const FUA: u16 = 1 << 0;
    /// Flag: zeroes that keep their storage.
    pub(crate) const NO_HOLE: u16 = 1 << 1;
}

/// Chunks of structured replies.
pub(super) mod chunk {
    /// Flag: the last one of its reply.
    pub(crate) const DONE: u16 = 1 << 0;

    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    /// Types of errors have this bit.
    pub(crate) const IS_ERROR: u16 = 1 << 15;
}

/// The start of a newstyle server's greeting.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Greeting {
    pub(super) init_magic: U64,
    pub(super) option_magic: U64,
}

/// An option's header; its data follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct OptionRequest {
    pub(super) magic: U64,
    pub(super) option: U32,
    pub(super) length: U32,
}

/// The header of a reply to an option; its data follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct OptionReply {
    pub(super) magic: U64,
    pub(super) option: U32,
    pub(super) kind: U32,
    pub(super) length: U32,
}

/// `NBD_INFO_EXPORT` behind its type.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct ExportInfo {
    pub(super) size: U64,
    pub(super) flags: U16,
}

/// `NBD_INFO_BLOCK_SIZE` behind its type.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct BlockSizeInfo {
    pub(super) minimum: U32,
    pub(super) preferred: U32,
    pub(super) maximum_payload: U32,
}

/// A request's header; a write's data follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RequestHeader {
    pub(super) magic: U32,
    pub(super) flags: U16,
    pub(super) kind: U16,
    pub(super) cookie: U64,
    pub(super) offset: U64,
    pub(super) length: U32,
}

/// A simple reply's header; a read's data follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SimpleReply {
    pub(super) magic: U32,
    pub(super) error: U32,
    pub(super) cookie: U64,
}

/// The header of a chunk of a structured reply; its data follow.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct ChunkHeader {
    pub(super) magic: U32,
    pub(super) flags: U16,
    pub(super) kind: U16,
    pub(super) cookie: U64,
    pub(super) length: U32,
}

/// The data of a hole's chunk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Hole {
    pub(super) offset: U64,
    pub(super) length: U32,
}

/// The start of the data of an error's chunk; a message follows.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkError {
    pub(super) error: U32,
    pub(super) message_length: U16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_protocol_s_sizes() {
        assert_eq!(size_of::<OptionRequest>(), 16);
        assert_eq!(size_of::<OptionReply>(), 20);
        assert_eq!((size_of::<ExportInfo>(), size_of::<BlockSizeInfo>()), (10, 12));
        assert_eq!(size_of::<RequestHeader>(), 28);
        assert_eq!(size_of::<SimpleReply>(), 16);
        assert_eq!(size_of::<ChunkHeader>(), 20);
        assert_eq!((size_of::<Hole>(), size_of::<ChunkError>()), (12, 6));
    }
}
