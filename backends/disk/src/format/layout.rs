//! Where a qcow2 file's tables lie: each on clusters of its own, within the file.
//!
//! An image is not read in whole for that, its two top tables are. It rules out what would make a search for a free
//! cluster endless, and what would have imago's caches hold two versions of one cluster. Where the entries of L2 tables
//! point is not looked at: they can spoil no more than the image itself.

use std::io;
use std::ops::Range;

use imago::{Storage, StorageExt};

use super::header::Header;

/// What is wrong with the tables.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A table is not on clusters of the file.
    #[error("{table} at {offset:#x} does not lie on whole clusters within the file")]
    Outside {
        /// Which.
        table: &'static str,
        /// Where, in bytes from the file's start.
        offset: u64,
    },
    /// Two tables share a cluster.
    #[error("Two tables, or a table and the header, lie on the cluster at {offset:#x}")]
    Shared {
        /// Where, in bytes from the file's start.
        offset: u64,
    },
    /// Nothing counts the first clusters, of which the header is one.
    #[error("The first refcount block is missing")]
    NoRefcounts,
    /// There are refcounts of clusters that the file is too short for.
    #[error("Refcount block {index} counts clusters behind the end of the file")]
    Beyond {
        /// Its place in the refcount table.
        index: u64,
    },
    /// There are no refcounts where a table's would be.
    #[error("Nothing counts the table at {offset:#x}")]
    Uncounted {
        /// Where, in bytes from the file's start.
        offset: u64,
    },
    /// The host cannot read it.
    #[error("Its tables cannot be read")]
    Read(#[source] io::Error),
}

/// The bits of an entry that are an offset. For refcount blocks bit 9 and up would be allowed; they are of clusters, too.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// The tables of an image.
#[derive(Debug)]
pub(super) struct Tables {
    /// The clusters of L2 tables and refcount blocks, in order.
    pub(super) clusters: Vec<u64>,
    /// Where each refcount block is, in bytes from the file's start; 0 for those that are not.
    pub(super) refcount_blocks: Vec<u64>,
}

/// Checks the tables of the image in `file`.
pub(super) fn check(file: &impl Storage, header: &Header) -> Result<Tables, LayoutError> {
    let cluster_size = header.cluster_size;
    let mut map = Map { cluster_size, end: file.size().map_err(LayoutError::Read)?, taken: Vec::new() };
    map.add("The header", 0, 1)?;
    map.add("The L1 table", header.l1_offset, header.l1_entries * 8)?;
    map.add("The refcount table", header.refcount_offset, header.refcount_entries * 8)?;
    let mut clusters = Vec::new();
    for offset in offsets(file, header.l1_offset, header.l1_entries)?.into_iter().filter(|&offset| offset != 0) {
        map.add("An L2 table", offset, 1)?;
        clusters.push(offset / cluster_size);
    }
    let refcount_blocks = offsets(file, header.refcount_offset, header.refcount_entries)?;
    // imago would put it at the file's start, where an entry says that there is none, and look for it for ever.
    if refcount_blocks.first().is_none_or(|&offset| offset == 0) {
        return Err(LayoutError::NoRefcounts);
    }
    for (index, &offset) in (0..).zip(&refcount_blocks).filter(|(_, offset)| **offset != 0) {
        // Behind the last cluster there is at most what a host that lost power did not get to.
        if index * header.refcounts_a_block > map.end.div_ceil(cluster_size) {
            return Err(LayoutError::Beyond { index });
        }
        map.add("A refcount block", offset, 1)?;
        clusters.push(offset / cluster_size);
    }
    map.check_unshared()?;
    clusters.sort_unstable();
    Ok(Tables { clusters, refcount_blocks })
}

/// The offsets in a table of big-endian numbers of 64 bits.
fn offsets(file: &impl Storage, offset: u64, count: u64) -> Result<Vec<u64>, LayoutError> {
    // The header bounds both tables.
    let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or_default()];
    file.read(&mut bytes, offset).map_err(LayoutError::Read)?;
    let (entries, _) = bytes.as_chunks();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry) & OFFSET).collect())
}

/// The clusters that are known to be in use.
struct Map {
    cluster_size: u64,
    /// Bytes of the file.
    end: u64,
    taken: Vec<Range<u64>>,
}

impl Map {
    /// Adds `len` bytes; the last cluster of a file may be cut short.
    fn add(&mut self, table: &'static str, offset: u64, len: u64) -> Result<(), LayoutError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.end && offset.is_multiple_of(self.cluster_size));
        let end = end.ok_or(LayoutError::Outside { table, offset })?;
        self.taken.push(offset / self.cluster_size..end.div_ceil(self.cluster_size));
        Ok(())
    }

    fn check_unshared(mut self) -> Result<(), LayoutError> {
        self.taken.sort_unstable_by_key(|range| range.start);
        let mut free_from = 0;
        for Range { start, end } in self.taken {
            if start < free_from {
                return Err(LayoutError::Shared { offset: start * self.cluster_size });
            }
            free_from = end;
        }
        Ok(())
    }
}
