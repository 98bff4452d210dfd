//! What the operator wrote of a disk, and what came of it once the image was there to compare with.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Access, Geometry, Storage};

/// Bytes of the serial number that GET_ID gives (VIRTIO_BLK_ID_BYTES).
pub(crate) const SERIAL_LEN: usize = 20;

/// The most queues a disk may have; each costs the host a thread.
const MAX_QUEUES: u16 = 16;

/// When a write counts as done, and through which memory it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// In the host's page cache; the driver flushes when it wants durability.
    #[default]
    Writeback,
    /// In the host's page cache and on persistent storage.
    Writethrough,
    /// Past the page cache (O_DIRECT); the storage's own cache still wants flushes.
    None,
}

/// How the host does the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// Many operations at a time, by io_uring; plain system calls where the host refuses it.
    #[default]
    #[serde(rename = "io_uring")]
    IoUring,
    /// One after the other, by plain system calls.
    #[serde(rename = "plain")]
    Plain,
}

/// What the operator wrote of a disk; every key but the image may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The raw image: a regular file or a block device. Needed; some other than the operator may know it.
    pub image: PathBuf,
    /// See [`Cache`].
    pub cache: Cache,
    /// What the guest sees as serial number: at most 20 printable ASCII characters.
    pub serial: String,
    /// Queues, 1 to 16: the guest's CPUs share them, each is worked by a thread of its own.
    pub queues: u16,
    /// See [`EngineKind`].
    pub engine: EngineKind,
    /// The guest cannot change the disk.
    pub read_only: bool,
    /// The guest can give storage back (TRIM, holes in a file).
    pub discard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image: PathBuf::new(),
            cache: Cache::default(),
            serial: String::new(),
            queues: 1,
            engine: EngineKind::default(),
            read_only: false,
            discard: true,
        }
    }
}

impl Config {
    /// How the image has to be opened for this disk.
    pub fn access(&self) -> Access {
        Access { read_only: self.read_only, direct: self.cache == Cache::None }
    }

    /// Checks what does not depend on the image.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(PlanError::Queues { queues: self.queues });
        }
        padded(&self.serial).map(drop)
    }
}

/// A disk that can be served: the configuration, checked, and what the storage adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The storage's measures.
    pub geometry: Geometry,
    /// The driver sees no write cache: it need not flush, each write is durable.
    pub write_through: bool,
    /// Every write is refused.
    pub read_only: bool,
    /// DISCARD is offered, and WRITE_ZEROES may give storage back.
    pub discard: bool,
    /// Number of queues.
    pub queues: u16,
    /// The engine of each lane.
    pub engine: EngineKind,
    /// Padded with zeroes.
    pub serial: [u8; SERIAL_LEN],
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `serial` is too long or holds other than printable ASCII.
    #[error("The disk's serial {serial:?} is not at most {SERIAL_LEN} printable ASCII characters")]
    Serial {
        /// What was written.
        serial: String,
    },
    /// `queues` is out of range.
    #[error("A disk with {queues} queues is not possible: give it 1 to {MAX_QUEUES}")]
    Queues {
        /// What was written.
        queues: u16,
    },
    /// The guest is to write an image that was opened for reading.
    #[error("The image {image} is open for reading only; set read_only = true, or open it for writing")]
    ReadOnlyImage {
        /// The image's name.
        image: String,
    },
    /// `cache = "none"`, and the image was opened without O_DIRECT.
    #[error("The image {image} is not open for direct I/O, which cache = \"none\" needs")]
    NotDirect {
        /// The image's name.
        image: String,
    },
    /// Direct I/O on the image takes larger blocks than the guest's.
    #[error(
        "Direct I/O on the image {image} works in blocks of {alignment} bytes, and the guest's are of {block_size}; \
         use cache = \"writeback\""
    )]
    DirectBlocks {
        /// The image's name.
        image: String,
        /// What direct I/O needs, in bytes.
        alignment: usize,
        /// The guest's logical block size, in bytes.
        block_size: u32,
    },
}

impl Plan {
    /// Checks a configuration against the storage it is for.
    ///
    /// # Errors
    /// The two do not fit; the message says what to change.
    pub fn new(config: &Config, storage: &dyn Storage) -> Result<Self, PlanError> {
        config.check()?;
        let geometry = storage.geometry();
        let image = || storage.name().to_owned();
        if geometry.read_only && !config.read_only {
            return Err(PlanError::ReadOnlyImage { image: image() });
        }
        match geometry.direct_alignment {
            None if config.cache == Cache::None => return Err(PlanError::NotDirect { image: image() }),
            Some(alignment) if alignment > geometry.block_size as usize => {
                return Err(PlanError::DirectBlocks { image: image(), alignment, block_size: geometry.block_size });
            }
            _ => {}
        }
        Ok(Self {
            geometry,
            write_through: config.cache == Cache::Writethrough,
            read_only: config.read_only,
            discard: config.discard && !config.read_only && geometry.discard_granularity > 0,
            queues: config.queues.min(geometry.max_queues),
            engine: config.engine,
            serial: padded(&config.serial)?,
        })
    }
}

fn padded(serial: &str) -> Result<[u8; SERIAL_LEN], PlanError> {
    let mut padded = [0; SERIAL_LEN];
    let is_printable = serial.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    match padded.get_mut(..serial.len()) {
        Some(start) if is_printable => start.copy_from_slice(serial.as_bytes()),
        _ => return Err(PlanError::Serial { serial: serial.to_owned() }),
    }
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_of_twenty_characters_fills_the_field_and_one_more_is_refused() {
        assert_eq!(padded("0123456789abcdefghij").unwrap(), *b"0123456789abcdefghij");
        assert_eq!(padded("vol-1").unwrap(), *b"vol-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert!(padded("0123456789abcdefghijk").is_err());
    }

    #[test]
    fn a_serial_that_would_garble_a_log_is_refused() {
        for serial in ["a\nb", "a\x1b[2J", "ä"] {
            assert!(padded(serial).is_err(), "{serial:?}");
        }
    }
}
