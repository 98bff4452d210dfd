//! `struct virtio_blk_config` (virtio 1.2 §5.2.4), and the limits that stand in it.

use std::mem::offset_of;

use zerocopy::{Immutable, IntoBytes, little_endian};

use crate::request::SECTOR_SIZE;
use crate::{Geometry, Plan};

/// Entries of each queue. A request takes one where the driver uses indirect descriptors, so this is how many it may
/// have in flight; the descriptor table then fills one page.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// Data segments of a request: with header and status it fits the queue without indirect descriptors.
pub(crate) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of a segment.
const SIZE_MAX: u32 = 128 << 10;

/// Bytes that a request may move. A driver that keeps to `SEG_MAX` and `SIZE_MAX` stays below it; boot loaders that
/// heed neither read a kernel in one piece.
pub(crate) const MAX_TRANSFER: u64 = 32 << 20;

/// Bytes that a request may discard or zero: what zeroing costs where it has to be written.
pub(crate) const MAX_SPAN: u64 = 64 << 20;

/// Segments of DISCARD and WRITE_ZEROES: a request is one operation of the engine.
pub(crate) const MAX_SPANS: u32 = 1;

const _: () = assert!(SEG_MAX as u64 * SIZE_MAX as u64 <= MAX_TRANSFER, "the limits told must be kept");

/// The fields up to `unused1`; those behind belong to features that are not offered.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct ConfigSpace {
    capacity: little_endian::U64,
    size_max: little_endian::U32,
    seg_max: little_endian::U32,
    /// GEOMETRY is not offered.
    geometry: [u8; 4],
    blk_size: little_endian::U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: little_endian::U16,
    opt_io_size: little_endian::U32,
    /// The one field that a driver may write.
    writeback: u8,
    unused0: u8,
    num_queues: little_endian::U16,
    max_discard_sectors: little_endian::U32,
    max_discard_seg: little_endian::U32,
    discard_sector_alignment: little_endian::U32,
    max_write_zeroes_sectors: little_endian::U32,
    max_write_zeroes_seg: little_endian::U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

impl ConfigSpace {
    /// Its size in bytes.
    pub(crate) const LEN: usize = size_of::<Self>();

    /// Where `writeback` is.
    pub(crate) const WRITEBACK: usize = offset_of!(Self, writeback);

    /// That of a disk which has `capacity` sectors now, and a cache or not as `writeback` says.
    pub(crate) fn of(plan: &Plan, capacity: u64, writeback: u8) -> Self {
        let Geometry { block_size, physical_block_size, optimal_io_size, alignment_offset, .. } = plan.geometry;
        let blocks_a_physical = (physical_block_size / block_size.max(1)).max(1);
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_SIZE).unwrap_or(u32::MAX);
        let max_discard = if plan.discard { plan.geometry.max_discard.min(MAX_SPAN) } else { 0 };
        Self {
            capacity: capacity.into(),
            size_max: SIZE_MAX.into(),
            seg_max: SEG_MAX.into(),
            geometry: [0; 4],
            blk_size: block_size.into(),
            physical_block_exp: u8::try_from(blocks_a_physical.ilog2()).unwrap_or(0),
            alignment_offset: u8::try_from(alignment_offset / block_size.max(1)).unwrap_or(0),
            min_io_size: u16::try_from(blocks_a_physical).unwrap_or(1).into(),
            opt_io_size: (optimal_io_size / block_size.max(1)).into(),
            writeback,
            unused0: 0,
            num_queues: plan.queues.into(),
            max_discard_sectors: sectors(max_discard).into(),
            max_discard_seg: MAX_SPANS.into(),
            discard_sector_alignment: (plan.geometry.discard_granularity / 512).into(),
            max_write_zeroes_sectors: sectors(MAX_SPAN).into(),
            max_write_zeroes_seg: MAX_SPANS.into(),
            write_zeroes_may_unmap: u8::from(plan.discard),
            unused1: [0; 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        assert_eq!(offset_of!(ConfigSpace, blk_size), 20);
        assert_eq!(offset_of!(ConfigSpace, physical_block_exp), 24);
        assert_eq!(offset_of!(ConfigSpace, writeback), 32);
        assert_eq!(offset_of!(ConfigSpace, num_queues), 34);
        assert_eq!(offset_of!(ConfigSpace, max_discard_sectors), 36);
        assert_eq!(offset_of!(ConfigSpace, write_zeroes_may_unmap), 56);
        assert_eq!(ConfigSpace::LEN, 60);
    }
}
