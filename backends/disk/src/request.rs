//! Descriptor chain → typed command (virtio 1.2 §5.2.6), with everything the driver claims checked. Knows no files.
//!
//! A chain's readable part is a header and what is to be written; its writable part is what is to be read and, last, a
//! status byte. How the parts are cut into descriptors means nothing (§2.7.4.1).

use guest_memory::Buffers;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, little_endian};

use crate::config::SERIAL_LEN;
use crate::config_space::{MAX_SPAN, MAX_SPANS, MAX_TRANSFER};
use crate::engine::Span;

/// The unit of every address and length on the wire, whatever the block size.
pub(crate) const SECTOR_SIZE: u64 = 512;

/// `struct virtio_blk_req` up to `data`.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: little_endian::U32,
    reserved: little_endian::U32,
    sector: little_endian::U64,
}

/// Bytes of the header, behind which a write's data begin.
pub(crate) const HEADER_LEN: usize = size_of::<Header>();

/// The most bytes of a chain.
pub(crate) const MAX_CHAIN: u64 = HEADER_LEN as u64 + MAX_TRANSFER + 1;

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Segment {
    sector: little_endian::U64,
    num_sectors: little_endian::U32,
    flags: little_endian::U32,
}

/// What a driver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The serial, at the start of the writable part.
    GetId,
    /// Something of the storage.
    Io(Io),
}

/// What a driver wants of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    /// Disk to the start of the writable part.
    Read(Span),
    /// What is behind the header, to disk.
    Write(Span),
    Flush,
    Discard(Span),
    WriteZeroes {
        span: Span,
        may_unmap: bool,
    },
}

impl Io {
    /// Which part of the disk it concerns; a flush concerns no part.
    pub(crate) fn span(self) -> Option<Span> {
        match self {
            Self::Read(span) | Self::Write(span) | Self::Discard(span) | Self::WriteZeroes { span, .. } => Some(span),
            Self::Flush => None,
        }
    }
}

/// How a request ended (§5.2.6, VIRTIO_BLK_S_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What the driver is told.
    pub(crate) status: Status,
    /// What people are told.
    pub(crate) reason: &'static str,
}

fn unsupported(reason: &'static str) -> Refusal {
    Refusal { status: Status::Unsupported, reason }
}

fn wrong(reason: &'static str) -> Refusal {
    Refusal { status: Status::IoError, reason }
}

/// What requests are held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Sectors of the disk.
    pub(crate) capacity: u64,
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    /// Bytes that a discard may span, if the storage takes less than [`MAX_SPAN`].
    pub(crate) max_discard: u64,
}

impl Rules {
    /// Parses a request whose writable part has room for the status byte at least.
    pub(crate) fn parse(&self, readable: &Buffers, writable: &Buffers) -> Result<Command, Refusal> {
        let mut header = Header::new_zeroed();
        if readable.read(0, header.as_mut_bytes()) < HEADER_LEN {
            return Err(wrong("its header is incomplete"));
        }
        let (sector, room) = (header.sector.get(), writable.len().saturating_sub(1));
        let data = readable.len() - HEADER_LEN;
        Ok(Command::Io(match header.kind.get() {
            VIRTIO_BLK_T_IN => Io::Read(self.transfer(sector, room)?),
            VIRTIO_BLK_T_OUT => Io::Write(self.writable()?.transfer(sector, data)?),
            VIRTIO_BLK_T_FLUSH => Io::Flush,
            VIRTIO_BLK_T_DISCARD => self.writable()?.discarded(readable)?,
            VIRTIO_BLK_T_WRITE_ZEROES => self.writable()?.zeroed(readable)?,
            VIRTIO_BLK_T_GET_ID if room == SERIAL_LEN => return Ok(Command::GetId),
            VIRTIO_BLK_T_GET_ID => return Err(wrong("the buffer for the serial has not 20 bytes")),
            _ => return Err(unsupported("its type is unknown")),
        }))
    }

    fn writable(&self) -> Result<&Self, Refusal> {
        if self.read_only { Err(wrong("the disk is read-only")) } else { Ok(self) }
    }

    fn transfer(&self, sector: u64, bytes: usize) -> Result<Span, Refusal> {
        let len = bytes as u64;
        if len == 0 || len > MAX_TRANSFER || !len.is_multiple_of(SECTOR_SIZE) {
            return Err(wrong("its length is not a whole number of sectors within the limit"));
        }
        self.span(sector, len / SECTOR_SIZE)
    }

    fn discarded(&self, readable: &Buffers) -> Result<Io, Refusal> {
        if !self.discard {
            return Err(unsupported("discard is not offered"));
        }
        let segment = segment(readable)?;
        // A discard has no flag but the reserved ones, and unmap is none of its own (§5.2.6.2).
        if segment.flags.get() != 0 {
            return Err(unsupported("a discard with flags"));
        }
        self.segment_span(&segment, self.max_discard).map(Io::Discard)
    }

    fn zeroed(&self, readable: &Buffers) -> Result<Io, Refusal> {
        let segment = segment(readable)?;
        let flags = segment.flags.get();
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(unsupported("a write-zeroes with unknown flags"));
        }
        let may_unmap = self.discard && flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        self.segment_span(&segment, MAX_SPAN).map(|span| Io::WriteZeroes { span, may_unmap })
    }

    fn segment_span(&self, segment: &Segment, most: u64) -> Result<Span, Refusal> {
        let sectors = u64::from(segment.num_sectors.get());
        if sectors == 0 || sectors > most.min(MAX_SPAN) / SECTOR_SIZE {
            return Err(wrong("its segment is empty or larger than allowed"));
        }
        self.span(segment.sector.get(), sectors)
    }

    fn span(&self, sector: u64, sectors: u64) -> Result<Span, Refusal> {
        match sector.checked_add(sectors) {
            // Below the capacity, which has been a number of bytes, neither product overflows.
            Some(end) if end <= self.capacity => Ok(Span { offset: sector * SECTOR_SIZE, len: sectors * SECTOR_SIZE }),
            _ => Err(wrong("it reaches beyond the end of the disk")),
        }
    }
}

/// The one segment of a discard or write-zeroes.
fn segment(readable: &Buffers) -> Result<Segment, Refusal> {
    const LEN: usize = size_of::<Segment>();
    const _: () = assert!(MAX_SPANS == 1, "one segment is read");
    if readable.len() != HEADER_LEN + LEN {
        return Err(wrong("it has not exactly one segment"));
    }
    let mut segment = Segment::new_zeroed();
    readable.read(HEADER_LEN, segment.as_mut_bytes());
    Ok(segment)
}
