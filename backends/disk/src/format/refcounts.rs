//! Refcounts of tables that a host did not get to write before it lost power.
//!
//! imago enters a new table where it is looked up, and its refcount in memory, to be written with the next flush. A
//! cluster that nothing counts would be taken for something else, and the table with it: so it is counted before imago
//! sees the image. That it is used once only has been found out by then.

use std::io;

use imago::{Storage, StorageExt};

use super::header::Header;
use super::layout::{LayoutError, Tables};

/// Counts each table that is not counted. Returns how many there were.
pub(super) fn mend(file: &impl Storage, header: &Header, tables: &Tables) -> Result<u64, LayoutError> {
    let mut mended = 0;
    let mut block: Option<Block> = None;
    for &cluster in &tables.clusters {
        let index = cluster / header.refcounts_a_block;
        if block.as_ref().is_none_or(|block| block.index != index) {
            let uncounted = LayoutError::Uncounted { offset: cluster * header.cluster_size };
            let offset = usize::try_from(index).ok().and_then(|index| tables.refcount_blocks.get(index).copied());
            let offset = offset.filter(|&offset| offset != 0).ok_or(uncounted)?;
            store(file, block.take())?;
            block = Some(Block::load(file, header, index, offset).map_err(LayoutError::Read)?);
        }
        let counted = block.as_mut().is_some_and(|block| block.count(cluster % header.refcounts_a_block));
        mended += u64::from(counted);
    }
    store(file, block)?;
    if mended > 0 {
        file.sync().map_err(LayoutError::Read)?;
    }
    Ok(mended)
}

fn store(file: &impl Storage, block: Option<Block>) -> Result<(), LayoutError> {
    match block {
        Some(Block { offset, bytes, is_changed: true, .. }) => file.write(&bytes, offset).map_err(LayoutError::Read),
        _ => Ok(()),
    }
}

/// A block of refcounts.
struct Block {
    index: u64,
    /// Bytes from the file's start.
    offset: u64,
    bytes: Vec<u8>,
    /// Bits of a refcount: a power of two up to 64.
    width: u64,
    is_changed: bool,
}

impl Block {
    fn load(file: &impl Storage, header: &Header, index: u64, offset: u64) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(header.cluster_size).unwrap_or_default()];
        file.read(&mut bytes, offset)?;
        Ok(Self { index, offset, bytes, width: header.cluster_size * 8 / header.refcounts_a_block, is_changed: false })
    }

    /// Makes a refcount of 0 one of 1; false if it is another.
    fn count(&mut self, entry: u64) -> bool {
        let first_bit = entry * self.width;
        let at = usize::try_from(first_bit / 8).unwrap_or(usize::MAX);
        let len = usize::try_from(self.width.div_ceil(8)).unwrap_or_default();
        let Some(bytes) = self.bytes.get_mut(at..).and_then(|rest| rest.get_mut(..len)) else { return false };
        // Refcounts smaller than a byte begin at its lowest bit; larger ones are big-endian.
        let shift = first_bit % 8;
        let mask = if self.width < 8 { ((1_u8 << self.width) - 1) << shift } else { u8::MAX };
        if bytes.iter().any(|byte| byte & mask != 0) {
            return false;
        }
        if let Some(last) = bytes.last_mut() {
            *last |= 1 << shift;
        }
        self.is_changed = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refcount_of_any_width_becomes_1_and_no_other_changes() {
        for width in [1, 2, 4, 8, 16, 32, 64] {
            let mut block = Block { index: 0, offset: 0, bytes: vec![0; 512], width, is_changed: false };
            assert!(block.count(5), "{width}");
            assert!(!block.count(5), "{width}");
            assert_eq!(block.bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            let bit = 5 * width;
            let expected = if width < 8 { (bit / 8, 1 << (bit % 8)) } else { (6 * width / 8 - 1, 1) };
            assert_eq!(block.bytes[usize::try_from(expected.0).unwrap()], expected.1, "{width}");
            assert!(block.count(4) && block.count(6), "{width}");
        }
    }
}
