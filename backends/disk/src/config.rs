//! What the operator wrote of a disk, and what came of it once the image was there to compare with.

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_backend::Rate;

use crate::nbd::Export;
use crate::topology::Topology;
use crate::{Access, Backing, Format, Geometry, Storage};

/// Bytes of the serial number that GET_ID gives (VIRTIO_BLK_ID_BYTES).
pub(crate) const SERIAL_LEN: usize = 20;

/// The most queues a disk may have; each costs the host a thread.
const MAX_QUEUES: u16 = 16;

/// The longest time to look on: beyond it, being woken costs nothing that anybody would notice.
const MAX_POLL_US: u16 = 1000;

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

/// What becomes of a request that the host fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest hears of it.
    #[default]
    Report,
    /// It waits until the operator has mended the storage and says so. Flushes fail all the same.
    Hold,
}

/// What the operator wrote of a disk; every key but the image may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The image: a regular file or a block device. Needed; some other than the operator may know it.
    pub image: PathBuf,
    /// See [`Format`].
    pub format: Format,
    /// What the image does not hold, nearest first. A header has to name each, and nothing that it names is opened
    /// instead.
    pub backing: Vec<Backing>,
    /// See [`Cache`].
    pub cache: Cache,
    /// What the guest sees as serial number: at most 20 printable ASCII characters.
    pub serial: String,
    /// Queues, 1 to 16: the guest's CPUs share them, each is worked by a thread of its own. Left out, one for each vCPU
    /// of the guest, but not more than the host has processors.
    pub queues: Option<u16>,
    /// The guest's logical block size in bytes, 512 or 4096. Left out, a block device's own, and 512 for a file.
    pub block_size: Option<u32>,
    /// See [`EngineKind`].
    pub engine: EngineKind,
    /// How long a lane may look on at its queue when it is empty, instead of sleeping until the guest kicks: microseconds,
    /// at most 1000. It takes a processor of the host while the guest comes again as soon; 0 is never.
    pub poll_us: u16,
    /// The guest cannot change the disk.
    pub read_only: bool,
    /// The guest can give storage back (TRIM, holes in a file).
    pub discard: bool,
    /// See [`OnError`].
    pub on_error: OnError,
    /// Requests that the guest may make in a time, over all queues.
    pub iops: Option<Rate>,
    /// Bytes that it may move in a time, over all queues.
    pub bandwidth: Option<Rate>,
    /// Of an NBD export: after how many seconds of silence a server that owes an answer is taken for dead; 0 is never.
    pub answer_timeout: u32,
    /// Of an NBD export: after how many seconds without a server requests fail; 0 is never.
    pub reconnect_timeout: u32,
    /// What the host says of its end, which [`open`](virtio_backend::Kind::open) fills in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
}

/// What is known of the host's end where a disk is opened, and cannot be asked where it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// Of a block device.
    Device(Topology),
    /// Of an export of an NBD server.
    Export(Export),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image: PathBuf::new(),
            format: Format::default(),
            backing: Vec::new(),
            cache: Cache::default(),
            serial: String::new(),
            queues: None,
            block_size: None,
            engine: EngineKind::default(),
            poll_us: 0,
            read_only: false,
            discard: true,
            on_error: OnError::default(),
            iops: None,
            bandwidth: None,
            answer_timeout: 0,
            reconnect_timeout: 0,
            found: None,
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
        if let Some(queues) = self.queues.filter(|queues| !(1..=MAX_QUEUES).contains(queues)) {
            return Err(PlanError::Queues { queues });
        }
        if let Some(block_size) = self.block_size.filter(|block_size| ![512, 4096].contains(block_size)) {
            return Err(PlanError::BlockSize { block_size });
        }
        if self.poll_us > MAX_POLL_US {
            return Err(PlanError::Poll { poll_us: self.poll_us });
        }
        for (key, rate) in [("iops", self.iops), ("bandwidth", self.bandwidth)] {
            if rate.is_some_and(|rate| rate.per_second == 0 || rate.burst == 0) {
                return Err(PlanError::NoRate { key });
            }
        }
        self.check_backing()?;
        padded(&self.serial).map(drop)
    }

    /// Only what is below a qcow2 image can be a backing file, and no file can be below itself.
    fn check_backing(&self) -> Result<(), PlanError> {
        let (mut above, mut format) = (vec![&self.image], self.format);
        for backing in &self.backing {
            let image = || backing.image.display().to_string();
            if format == Format::Raw {
                return Err(PlanError::BackingOfRaw { image: image() });
            }
            if above.contains(&&backing.image) {
                return Err(PlanError::BackingTwice { image: image() });
            }
            above.push(&backing.image);
            format = backing.format;
        }
        Ok(())
    }

    /// Puts in the number of queues where it was left out, for a guest with so many vCPUs.
    pub(crate) fn choose_queues(&mut self, vcpus: u16) {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let processors = u16::try_from(processors).unwrap_or(MAX_QUEUES);
        self.queues.get_or_insert(vcpus.min(processors).clamp(1, MAX_QUEUES));
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
    /// How long a lane may look on at its queue; zero where limits have requests wait in it.
    pub poll: Duration,
    /// Padded with zeroes.
    pub serial: [u8; SERIAL_LEN],
    /// See [`OnError`].
    pub on_error: OnError,
    /// Requests in a time.
    pub iops: Option<Rate>,
    /// Bytes in a time.
    pub bandwidth: Option<Rate>,
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
    /// `poll_us` is out of range.
    #[error("To look on for {poll_us} microseconds is too long: set poll_us to 0 (never) up to {MAX_POLL_US}")]
    Poll {
        /// What was written.
        poll_us: u16,
    },
    /// `queues` is out of range.
    #[error("A disk with {queues} queues is not possible: give it 1 to {MAX_QUEUES}")]
    Queues {
        /// What was written.
        queues: u16,
    },
    /// A raw image has nothing below it.
    #[error(
        "The backing file {image} is below a raw image, which has none; say format = \"qcow2\" of the one above it"
    )]
    BackingOfRaw {
        /// The backing file's path.
        image: String,
    },
    /// A file is named twice.
    #[error("The backing file {image} is the image itself, or is named twice")]
    BackingTwice {
        /// The backing file's path.
        image: String,
    },
    /// `block_size` is none that there is.
    #[error("A disk with blocks of {block_size} bytes is not possible: block_size is 512 or 4096")]
    BlockSize {
        /// What was written.
        block_size: u32,
    },
    /// `block_size` is smaller than the storage's own.
    #[error("The image {image} has blocks of {own} bytes and cannot have smaller ones; leave block_size out")]
    SmallBlocks {
        /// The image's name.
        image: String,
        /// Its logical block size, in bytes.
        own: u32,
    },
    /// The image ends within a block.
    #[error(
        "The image {image} has {size} bytes, not a multiple of block_size = {block_size}; extend it with `truncate \
         --size=%{block_size}`"
    )]
    PartOfBlock {
        /// The image's name.
        image: String,
        /// Its size, in bytes.
        size: u64,
        /// What was written.
        block_size: u32,
    },
    /// A limit that lets nothing through.
    #[error("A disk that may do nothing is of no use: give {key} a per_second and a burst of at least 1")]
    NoRate {
        /// The limit.
        key: &'static str,
    },
    /// The host is out of descriptors.
    #[error("No timer is to be had for the disk's limits")]
    NoTimer {
        /// What the host says.
        #[source]
        source: io::Error,
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
         use block_size = {alignment} for a new disk, or cache = \"writeback\""
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
        let image = || storage.name().to_owned();
        let geometry = with_block_size(config.block_size, storage)?;
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
        let has_limits = config.iops.is_some() || config.bandwidth.is_some();
        Ok(Self {
            geometry,
            write_through: config.cache == Cache::Writethrough,
            read_only: config.read_only,
            discard: config.discard && !config.read_only && geometry.discard_granularity > 0,
            queues: config.queues.unwrap_or(1).min(geometry.max_queues),
            engine: config.engine,
            poll: Duration::from_micros(if has_limits { 0 } else { config.poll_us.into() }),
            serial: padded(&config.serial)?,
            on_error: config.on_error,
            iops: config.iops,
            bandwidth: config.bandwidth,
        })
    }
}

/// The storage's measures, with the blocks that the guest is to see.
fn with_block_size(block_size: Option<u32>, storage: &dyn Storage) -> Result<Geometry, PlanError> {
    let geometry = storage.geometry();
    let block_size = block_size.unwrap_or(geometry.block_size);
    let image = || storage.name().to_owned();
    if block_size < geometry.block_size {
        return Err(PlanError::SmallBlocks { image: image(), own: geometry.block_size });
    }
    if !geometry.size.is_multiple_of(u64::from(block_size)) {
        return Err(PlanError::PartOfBlock { image: image(), size: geometry.size, block_size });
    }
    let physical_block_size = geometry.physical_block_size.max(block_size);
    Ok(Geometry { block_size, physical_block_size, ..geometry })
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
    use std::io;

    use virtio_backend::Kind;

    use super::*;
    use crate::Disk;
    use crate::engine::Engine;

    #[test]
    fn a_serial_of_twenty_characters_fills_the_field_and_one_more_is_refused() {
        assert_eq!(padded("0123456789abcdefghij").unwrap(), *b"0123456789abcdefghij");
        assert_eq!(padded("vol-1").unwrap(), *b"vol-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert!(padded("0123456789abcdefghijk").is_err());
    }

    #[test]
    fn what_an_operator_cannot_have_is_refused_with_the_key() {
        let refused = |config: Config| Disk::check(&config).unwrap_err().to_string();
        let written = || Config { image: "/dev/vg/web".into(), ..Config::default() };
        let topology = crate::Topology::default();
        let kinds = [
            (Config { poll_us: MAX_POLL_US + 1, ..written() }, "poll_us"),
            (Config { found: Some(Found::Device(topology)), ..written() }, "found"),
            (Config { image: "nbd://192.0.2.1/web".into(), format: Format::Qcow2, ..written() }, "--format=qcow2"),
        ];
        for (config, named) in kinds {
            let error = refused(config);
            assert!(error.contains(named), "{error}");
        }
        assert!(Disk::check(&written()).is_ok());
    }

    /// An image on a file system that does direct I/O in larger blocks than a disk's sectors.
    struct Coarse;

    impl Storage for Coarse {
        fn name(&self) -> &str {
            "coarse.img"
        }

        fn geometry(&self) -> Geometry {
            Geometry {
                size: 1 << 20,
                block_size: 512,
                physical_block_size: 4096,
                optimal_io_size: 0,
                alignment_offset: 0,
                max_discard: u64::MAX,
                discard_granularity: 0,
                direct_alignment: Some(4096),
                read_only: false,
                max_queues: 1,
            }
        }

        fn size(&self) -> io::Result<u64> {
            Ok(self.geometry().size)
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }

        fn open_engine(&self, _kind: EngineKind, _depth: u16) -> io::Result<Box<dyn Engine>> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn direct_io_in_larger_blocks_than_the_guests_is_refused_with_the_size_that_will_do() {
        let config = Config { cache: Cache::None, ..Config::default() };
        let error = Plan::new(&config, &Coarse).unwrap_err().to_string();
        assert!(error.contains("coarse.img") && error.contains("use block_size = 4096"), "{error}");
        assert!(Plan::new(&Config { block_size: Some(4096), ..config }, &Coarse).is_ok());
    }

    #[test]
    fn a_serial_that_would_garble_a_log_is_refused() {
        for serial in ["a\nb", "a\x1b[2J", "ä"] {
            assert!(padded(serial).is_err(), "{serial:?}");
        }
    }
}
