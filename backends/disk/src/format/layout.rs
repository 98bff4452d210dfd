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
    /// The host cannot read it.
    #[error("Its tables cannot be read")]
    Read(#[source] io::Error),
}

/// The bits of an entry that are an offset. For refcount blocks bit 9 and up would be allowed; they are of clusters, too.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Checks the tables of the image in `file`.
pub(super) fn check(file: &impl Storage, header: &Header) -> Result<(), LayoutError> {
    let mut map =
        Map { cluster_size: header.cluster_size, end: file.size().map_err(LayoutError::Read)?, taken: Vec::new() };
    map.add("The header", 0, 1)?;
    map.add("The L1 table", header.l1_offset, header.l1_entries * 8)?;
    map.add("The refcount table", header.refcount_offset, header.refcount_entries * 8)?;
    for entry in entries(file, header.l1_offset, header.l1_entries)? {
        map.add_cluster("An L2 table", entry & OFFSET)?;
    }
    for (index, entry) in (0..).zip(entries(file, header.refcount_offset, header.refcount_entries)?) {
        let offset = entry & OFFSET;
        // imago would put it at the file's start, where an entry says that there is none, and look for it for ever.
        if index == 0 && offset == 0 {
            return Err(LayoutError::NoRefcounts);
        }
        // Behind the last cluster there is at most what a host that lost power did not get to.
        if offset != 0 && index * header.refcounts_a_block > map.end.div_ceil(header.cluster_size) {
            return Err(LayoutError::Beyond { index });
        }
        map.add_cluster("A refcount block", offset)?;
    }
    map.check_unshared()
}

/// Entries of a table of big-endian numbers of 64 bits.
fn entries(file: &impl Storage, offset: u64, count: u64) -> Result<impl Iterator<Item = u64>, LayoutError> {
    // The header bounds both tables.
    let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or_default()];
    file.read(&mut bytes, offset).map_err(LayoutError::Read)?;
    let len = bytes.len() / 8;
    Ok((0..len).map(move |index| {
        bytes.get(index * 8..).and_then(|rest| rest.first_chunk()).map_or(0, |entry| u64::from_be_bytes(*entry))
    }))
}

/// The clusters that are known to be in use.
struct Map {
    cluster_size: u64,
    /// Bytes of the file.
    end: u64,
    taken: Vec<Range<u64>>,
}

impl Map {
    fn add(&mut self, table: &'static str, offset: u64, len: u64) -> Result<(), LayoutError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.end && offset.is_multiple_of(self.cluster_size));
        let end = end.ok_or(LayoutError::Outside { table, offset })?;
        self.taken.push(offset / self.cluster_size..end.div_ceil(self.cluster_size));
        Ok(())
    }

    /// Adds a table of one cluster, of which the last in the file may be cut short; 0 is none.
    fn add_cluster(&mut self, table: &'static str, offset: u64) -> Result<(), LayoutError> {
        if offset == 0 { Ok(()) } else { self.add(table, offset, 1) }
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
