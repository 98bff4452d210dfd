//! What a server says of an export, held against what a disk can be.

use serde::{Deserialize, Serialize};

use crate::Geometry;

use super::NbdError;
use super::wire::{BlockSizeInfo, ExportInfo, transmission};

/// The largest logical block that guests know.
const LARGEST_BLOCK: u32 = 4096;

/// Without a word of the server's, what the protocol lets a client assume, and the most that is made use of.
const DEFAULT_PAYLOAD: u32 = 32 << 20;

/// What a server that says nothing of blocks works best in.
const DEFAULT_PREFERRED: u32 = 4096;

/// The least `maximum_payload` that a server may name.
const LEAST_PAYLOAD: u32 = 4096;

/// An export as it was negotiated, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// In bytes.
    pub(super) size: u64,
    /// What offsets and lengths must be multiples of: a power of two, 512 to 4096.
    pub(super) block_size: u32,
    /// What the server works best in: a power of two, not below `block_size`.
    pub(super) preferred: u32,
    /// The most bytes of data in a request: a multiple of `block_size`.
    pub(super) max_payload: u32,
    flags: u16,
    /// Reads are answered in chunks.
    pub(super) structured: bool,
}

impl Export {
    pub(super) fn new(info: ExportInfo, blocks: Option<BlockSizeInfo>, structured: bool) -> Result<Self, NbdError> {
        let (size, flags) = (info.size.get(), info.flags.get());
        if flags & transmission::HAS_FLAGS == 0 {
            return Err(NbdError::Lied("its export has no flags"));
        }
        let (minimum, preferred, maximum) = match blocks {
            Some(blocks) => (blocks.minimum.get(), blocks.preferred.get(), blocks.maximum_payload.get()),
            None => (1, DEFAULT_PREFERRED, DEFAULT_PAYLOAD),
        };
        // The protocol's own limits: powers of two, the smallest block at most 64 KiB.
        if !minimum.is_power_of_two() || minimum > 1 << 16 || !preferred.is_power_of_two() || preferred < minimum {
            return Err(NbdError::Lied("the block sizes of its export are impossible"));
        }
        if maximum < LEAST_PAYLOAD.max(minimum) {
            return Err(NbdError::Lied("its export takes next to no data in a request"));
        }
        let refused = |what| Err(NbdError::Export { what });
        if minimum > LARGEST_BLOCK {
            return refused(format!(
                "works in blocks of {minimum} bytes, and guests know none above {LARGEST_BLOCK}; \
                 let the server allow smaller ones (nbdkit: --filter=blocksize)"
            ));
        }
        let block_size = minimum.max(512);
        if size == 0 {
            return refused("is empty".to_owned());
        }
        if i64::try_from(size).is_err() || !size.is_multiple_of(u64::from(block_size)) {
            return refused(format!(
                "has {size} bytes, not a multiple of {block_size}; extend what the server serves, or have it cut what is \
                 left over (nbdkit: --filter=truncate round-down={block_size})"
            ));
        }
        let max_payload = maximum.min(DEFAULT_PAYLOAD);
        let max_payload = max_payload - max_payload % block_size;
        Ok(Self { size, block_size, preferred: preferred.max(block_size), max_payload, flags, structured })
    }

    pub(super) fn geometry(&self) -> Geometry {
        let physical_block_size = self.preferred.min(LARGEST_BLOCK);
        Geometry {
            size: self.size,
            block_size: self.block_size,
            physical_block_size,
            optimal_io_size: if self.preferred > physical_block_size { self.preferred } else { 0 },
            alignment_offset: 0,
            max_discard: u64::MAX,
            discard_granularity: if self.has(transmission::SEND_TRIM) { physical_block_size } else { 0 },
            // Nothing of it is in this host's page cache, and the server refuses what is not made of whole blocks.
            direct_alignment: Some(self.block_size as usize),
            read_only: self.has(transmission::READ_ONLY),
            max_queues: if self.has(transmission::CAN_MULTI_CONN) { u16::MAX } else { 1 },
        }
    }

    pub(super) fn can_flush(&self) -> bool {
        self.has(transmission::SEND_FLUSH)
    }

    pub(super) fn can_fua(&self) -> bool {
        self.has(transmission::SEND_FUA)
    }

    pub(super) fn can_trim(&self) -> bool {
        self.has(transmission::SEND_TRIM)
    }

    pub(super) fn can_write_zeroes(&self) -> bool {
        self.has(transmission::SEND_WRITE_ZEROES)
    }

    /// Checks that `self` can go on where `former` was, for a guest that knows that one; with `several`, by several
    /// connections at a time. What is done in another way where a server cannot do it, such as zeroes, need not be the
    /// same.
    pub(super) fn replaces(&self, former: &Self, several: bool) -> Result<(), NbdError> {
        let lost = |flag| former.has(flag) && !self.has(flag);
        let differences = [
            (self.size < former.size, "it is smaller"),
            (self.block_size > former.block_size, "its blocks are larger"),
            (
                self.has(transmission::READ_ONLY) && !former.has(transmission::READ_ONLY),
                "it cannot be written any more",
            ),
            (lost(transmission::SEND_FLUSH), "it cannot flush any more"),
            (several && lost(transmission::CAN_MULTI_CONN), "it does not allow several connections any more"),
        ];
        let found = differences.iter().find(|(differs, _)| *differs);
        found.map_or(Ok(()), |(_, what)| Err(NbdError::Changed(what)))
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u16 = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::SEND_TRIM
        | transmission::SEND_WRITE_ZEROES
        | transmission::CAN_MULTI_CONN;

    fn export(size: u64, flags: u16, blocks: Option<[u32; 3]>) -> Result<Export, NbdError> {
        let blocks = blocks.map(|[minimum, preferred, maximum]| BlockSizeInfo {
            minimum: minimum.into(),
            preferred: preferred.into(),
            maximum_payload: maximum.into(),
        });
        Export::new(ExportInfo { size: size.into(), flags: flags.into() }, blocks, true)
    }

    #[test]
    fn what_a_server_says_becomes_the_disk_s_measures() {
        let silent = export(1 << 20, ALL, None).unwrap();
        let Geometry { block_size, physical_block_size, optimal_io_size, discard_granularity, max_queues, .. } =
            silent.geometry();
        assert_eq!((block_size, physical_block_size, optimal_io_size), (512, 4096, 0));
        assert_eq!((discard_granularity, max_queues, silent.max_payload), (4096, u16::MAX, 32 << 20));

        let told = export(1 << 20, transmission::HAS_FLAGS, Some([4096, 65536, u32::MAX])).unwrap();
        let Geometry { block_size, physical_block_size, optimal_io_size, discard_granularity, max_queues, .. } =
            told.geometry();
        assert_eq!((block_size, physical_block_size, optimal_io_size), (4096, 4096, 65536));
        assert_eq!((discard_granularity, max_queues, told.max_payload), (0, 1, 32 << 20));

        assert_eq!(export(1 << 20, ALL, Some([1, 4096, 5000])).unwrap().max_payload, 4608);
    }

    #[test]
    fn what_could_be_no_disk_is_refused_in_words() {
        let refused = [
            (export(0, ALL, None), "empty"),
            (export(1000, ALL, None), "1000 bytes, not a multiple of 512"),
            (export(4096 + 512, ALL, Some([4096, 4096, 1 << 20])), "not a multiple of 4096"),
            (export(u64::MAX - 511, ALL, None), "not a multiple"),
            (export(1 << 20, ALL, Some([65536, 65536, 1 << 20])), "blocksize"),
            (export(1 << 20, 0, None), "no flags"),
            (export(1 << 20, ALL, Some([0, 4096, 1 << 20])), "impossible"),
            (export(1 << 20, ALL, Some([3, 4096, 1 << 20])), "impossible"),
            (export(1 << 20, ALL, Some([512, 5000, 1 << 20])), "impossible"),
            (export(1 << 20, ALL, Some([4096, 512, 1 << 20])), "impossible"),
            (export(1 << 20, ALL, Some([1 << 17, 1 << 17, 1 << 20])), "impossible"),
            (export(1 << 20, ALL, Some([512, 4096, 511])), "next to no data"),
        ];
        for (outcome, words) in refused {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn an_export_is_replaced_only_by_one_that_can_do_as_much() {
        let former = export(1 << 20, ALL, None).unwrap();
        let fit = [
            export(1 << 20, ALL, None),
            export(2 << 20, ALL, None),
            export(1 << 20, ALL & !transmission::SEND_TRIM & !transmission::SEND_WRITE_ZEROES, None),
            export(1 << 20, ALL & !transmission::SEND_FUA, Some([512, 4096, 1 << 16])),
        ];
        for other in fit {
            assert!(other.unwrap().replaces(&former, true).is_ok());
        }
        let unfit = [
            (export(1 << 19, ALL, None), "smaller"),
            (export(1 << 20, ALL, Some([4096, 4096, 1 << 20])), "blocks"),
            (export(1 << 20, ALL | transmission::READ_ONLY, None), "written"),
            (export(1 << 20, ALL & !transmission::SEND_FLUSH, None), "flush"),
            (export(1 << 20, ALL & !transmission::CAN_MULTI_CONN, None), "several connections"),
        ];
        for (other, words) in unfit {
            let error = other.unwrap().replaces(&former, true).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let single = export(1 << 20, ALL & !transmission::CAN_MULTI_CONN, None).unwrap();
        assert!(single.replaces(&former, false).is_ok());
    }
}
