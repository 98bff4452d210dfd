//! The start of a qcow2 file (QEMU docs/interop/qcow2.txt, "Header"), checked before anyone else parses it.
//!
//! imago checks most of it as well. It does not look at the encryption method, and would serve the cipher text; and it
//! writes to the header of an image that it then refuses. So what is not to be served never reaches it.

use std::io;

use imago::{Storage, StorageExt};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::request::SECTOR_SIZE;

const MAGIC: [u8; 4] = *b"QFI\xfb";

/// From 512 bytes, the format's limit, to 2 MiB, QEMU's.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// QEMU's limits on tables that are read as a whole, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// The longest name of a backing file, in bytes.
const MAX_NAME: u32 = 1023;

/// Bytes of a header of version 2, and the least of version 3.
const V2_LEN: u32 = 72;
const V3_LEN: u32 = 104;

/// Bits of a refcount, as a power of two: all that version 2 has, and the most that version 3 has.
const V2_REFCOUNT_ORDER: u32 = 4;
const MAX_REFCOUNT_ORDER: u32 = 6;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
    // What follows is of version 3.
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It is not there.
    #[error("It does not begin as qcow2 does; if it is a raw image, leave `format` out")]
    Magic,
    /// A number is out of range.
    #[error("Its header says {value} for {field}, which must be {expected}")]
    Field {
        /// Which number.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it would have to be.
        expected: &'static str,
    },
    /// It is encrypted.
    #[error("It is encrypted, which is not supported; `qemu-img convert` makes a plain image of it")]
    Encrypted,
    /// It must be understood in a way that is not.
    #[error("{0}")]
    Feature(&'static str),
    /// The name of the backing file cannot be.
    #[error("Its backing file's name, {len} bytes at {offset}, is too long or does not lie in the first cluster")]
    Name {
        /// Where it begins in the file, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u32,
    },
    /// The host cannot read it.
    #[error("It cannot be read")]
    Read(#[source] io::Error),
}

/// What is said of each incompatible feature, by its bit.
const FEATURES: [&str; 5] = [
    "It was not closed as it should be; `qemu-img check -r all` mends it",
    "It is marked as corrupt; `qemu-img check -r all` may mend a copy of it",
    "It keeps its data in another file, which is not supported; `qemu-img convert` makes one file of the two",
    "It is compressed with something else than zlib, which is not supported; `qemu-img convert -O qcow2` changes that",
    "It has extended L2 entries, which are not supported; `qemu-img convert -O qcow2` makes an image without",
];

/// A header that can be served.
#[derive(Debug)]
pub(super) struct Header {
    /// Bytes of a cluster.
    pub(super) cluster_size: u64,
    pub(super) version: u32,
    /// Entries of the L1 table.
    pub(super) l1_entries: u64,
    /// Bytes from the file's start.
    pub(super) l1_offset: u64,
    /// Entries of the refcount table.
    pub(super) refcount_entries: u64,
    /// Bytes from the file's start.
    pub(super) refcount_offset: u64,
    /// Clusters whose refcounts are in one block.
    pub(super) refcounts_a_block: u64,
    /// The name of the backing file, if there is one; whoever made the image chose it.
    pub(super) backing: Option<String>,
}

impl Header {
    /// Reads and checks the header of the image in `file`.
    pub(super) fn read(file: &impl Storage) -> Result<Self, HeaderError> {
        let mut raw = Raw::new_zeroed();
        // imago gives zeroes for what is behind the end of a file.
        file.read(raw.as_mut_bytes(), 0).map_err(HeaderError::Read)?;
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut header = raw.check()?;
        header.backing = raw.backing(file, header.cluster_size)?;
        Ok(header)
    }
}

impl Raw {
    fn check(&self) -> Result<Header, HeaderError> {
        let version = within("the version", self.version.get(), 2..=3, "2 or 3")?;
        let cluster_bits = within("the bits of a cluster", self.cluster_bits.get(), CLUSTER_BITS, "9 to 21")?;
        let cluster_size = 1_u64 << cluster_bits;
        if self.crypt_method.get() != 0 {
            return Err(HeaderError::Encrypted);
        }
        let refcount_order = if version == 3 { self.check_version_3(cluster_size)? } else { V2_REFCOUNT_ORDER };
        let size = self.size.get();
        require(size > 0 && size.is_multiple_of(SECTOR_SIZE), "the disk's size", size, "a multiple of 512, not 0")?;
        // One L2 table fills a cluster, and each of its entries of 8 bytes stands for one.
        let l1_needed = size.div_ceil(cluster_size).div_ceil(cluster_size / 8);
        require(l1_needed * 8 <= MAX_L1_BYTES, "the disk's size", size, "such that an L1 table of 32 MiB reaches it")?;
        let l1_entries = u64::from(self.l1_size.get());
        let all_and_no_more = l1_entries >= l1_needed && l1_entries * 8 <= MAX_L1_BYTES;
        require(all_and_no_more, "the L1 table's length", l1_entries, "enough for the disk, and at most 4194304")?;
        let clusters = u64::from(self.refcount_table_clusters.get());
        let some_and_no_more = clusters > 0 && clusters * cluster_size <= MAX_REFCOUNT_TABLE_BYTES;
        require(some_and_no_more, "the refcount table's clusters", clusters, "at least 1, and 8 MiB at most")?;
        Ok(Header {
            cluster_size,
            version,
            l1_entries,
            l1_offset: table("the L1 table's offset", self.l1_table_offset, cluster_size)?,
            refcount_entries: clusters * cluster_size / 8,
            refcount_offset: table("the refcount table's offset", self.refcount_table_offset, cluster_size)?,
            refcounts_a_block: (cluster_size * 8) >> refcount_order,
            backing: None,
        })
    }

    /// Checks what version 2 has not. Returns the order of the refcounts' bits.
    fn check_version_3(&self, cluster_size: u64) -> Result<u32, HeaderError> {
        let features = self.incompatible_features.get();
        if features != 0 {
            let known = FEATURES.iter().enumerate().find(|(bit, _)| features >> bit & 1 == 1);
            let unknown = "It has features that nobody knew of when this was written; use QEMU's tools of its own age";
            return Err(HeaderError::Feature(known.map_or(unknown, |(_, what)| what)));
        }
        let len = u64::from(self.header_length.get());
        let fits = len >= u64::from(V3_LEN) && len.is_multiple_of(8) && len <= cluster_size;
        require(fits, "its own length", len, "a multiple of 8 from 104 to a cluster")?;
        within("the refcounts' order", self.refcount_order.get(), 0..=MAX_REFCOUNT_ORDER, "0 to 6")
    }

    fn backing(&self, file: &impl Storage, cluster_size: u64) -> Result<Option<String>, HeaderError> {
        let (offset, len) = (self.backing_file_offset.get(), self.backing_file_size.get());
        if offset == 0 {
            return Ok(None);
        }
        let in_cluster = offset.checked_add(u64::from(len)).is_some_and(|end| end < cluster_size);
        if !in_cluster || offset < u64::from(V2_LEN) || len > MAX_NAME {
            return Err(HeaderError::Name { offset, len });
        }
        let mut name = vec![0; usize::try_from(len).unwrap_or_default()];
        file.read(&mut name, offset).map_err(HeaderError::Read)?;
        Ok(Some(String::from_utf8_lossy(&name).into_owned()))
    }
}

fn within(
    field: &'static str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
    expected: &'static str,
) -> Result<u32, HeaderError> {
    require(range.contains(&value), field, u64::from(value), expected)?;
    Ok(value)
}

/// The offset of a table: of whole clusters, behind the header.
fn table(field: &'static str, offset: U64, cluster_size: u64) -> Result<u64, HeaderError> {
    let value = offset.get();
    let fits = value > 0 && value.is_multiple_of(cluster_size) && value <= i64::MAX.cast_unsigned();
    require(fits, field, value, "a multiple of the cluster's size, not 0")?;
    Ok(value)
}

fn require(holds: bool, field: &'static str, value: u64, expected: &'static str) -> Result<(), HeaderError> {
    if holds { Ok(()) } else { Err(HeaderError::Field { field, value, expected }) }
}
