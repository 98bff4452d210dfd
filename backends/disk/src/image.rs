//! A raw image: the file or block device whose bytes are the disk's.
//!
//! The broker opens it by the path the operator gave, and a worker receives the descriptor: what must be known of an
//! image is therefore asked of the descriptor, on either side. Its contents are never looked at.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;
use virtio_backend::Record;

use crate::engine::{self, Engine, Target};
use crate::request::SECTOR_SIZE;
use crate::turn::Turn;
use crate::{EngineKind, Geometry, Storage, Topology};

/// How to open an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// For reading only.
    pub read_only: bool,
    /// With O_DIRECT.
    pub direct: bool,
}

/// An image that can be served.
#[derive(Debug)]
pub struct Image {
    file: File,
    name: String,
    is_block_device: bool,
    geometry: Geometry,
    /// Of a block device.
    topology: Option<Topology>,
    turn: Turn,
}

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("Cannot open the image {image}")]
    Open {
        /// Path of the image.
        image: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// It is something else than a disk.
    #[error("The image {image} is {what}; a disk is a regular file or a block device")]
    Kind {
        /// Path of the image.
        image: String,
        /// What it is.
        what: &'static str,
    },
    /// It holds nothing.
    #[error("The image {image} is empty; make room with `truncate --size=10G`, or check the path")]
    Empty {
        /// Path of the image.
        image: String,
    },
    /// Its last sector is incomplete.
    #[error(
        "The image {image} has {size} bytes, not a multiple of {block_size}; extend it with `truncate --size=%{block_size}`"
    )]
    Size {
        /// Path of the image.
        image: String,
        /// Its size in bytes.
        size: u64,
        /// What the size has to be a multiple of.
        block_size: u32,
    },
    /// Another process has it.
    #[error(
        "The image {image} is in use: by another guest, a program on this host, or a mount; two writers would destroy it"
    )]
    InUse {
        /// Path of the image.
        image: String,
    },
    /// Its file system has no O_DIRECT.
    #[error(
        "The file system of the image {image} has no direct I/O, which cache = \"none\" needs; use cache = \"writeback\""
    )]
    NoDirect {
        /// Path of the image.
        image: String,
    },
    /// It does not say what it is.
    #[error("Cannot find out what the image {image} is")]
    Query {
        /// Path of the image.
        image: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

impl Image {
    /// Opens and locks the image at `path`: one writer, or several readers, at a time. The lock lasts as long as any
    /// copy of the descriptor.
    ///
    /// Symbolic links are followed, because logical volumes are reached through them; the operator names the path, a
    /// guest cannot. What turns out not to be a disk is not opened: that alone would act on some devices.
    ///
    /// # Errors
    /// It is no disk, or not to be had; the message says what to do.
    pub fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        Self::from_file(open_file(path, access)?, path.display().to_string())
    }

    /// Takes an image that someone else has opened; `name` is for messages.
    ///
    /// # Errors
    /// It is no disk.
    pub fn from_file(file: File, name: impl Into<String>) -> Result<Self, ImageError> {
        Self::measured(file, name.into(), None)
    }

    /// The same, where a block device was `found` to be like this; there, sysfs need not be.
    ///
    /// # Errors
    /// It is no disk.
    pub(crate) fn found(file: File, name: String, found: Topology) -> Result<Self, ImageError> {
        Self::measured(file, name, Some(found))
    }

    fn measured(file: File, name: String, found: Option<Topology>) -> Result<Self, ImageError> {
        let is_block_device = check_kind(&file, &name)?;
        let mut geometry = measure(&file, is_block_device)
            .map_err(|source| ImageError::Query { image: name.clone(), source: source.into() })?;
        let topology = is_block_device.then(|| found.unwrap_or_else(|| Topology::of(&file)));
        if let Some(topology) = topology {
            geometry = topology.refine(geometry);
        }
        let Geometry { size, block_size, .. } = geometry;
        if size == 0 {
            return Err(ImageError::Empty { image: name });
        }
        if !size.is_multiple_of(u64::from(block_size)) {
            return Err(ImageError::Size { image: name, size, block_size });
        }
        Ok(Self { file, name, is_block_device, geometry, topology, turn: Turn::default() })
    }

    /// What a block device says of itself.
    pub(crate) fn topology(&self) -> Option<Topology> {
        self.topology
    }

    /// The open file.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Storage for Image {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn size(&self) -> io::Result<u64> {
        Ok(size_of(&self.file, self.is_block_device)?)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn follow(&self, record: &Record) {
        self.turn.follow(record);
    }

    fn open_engine(&self, kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>> {
        let Geometry { direct_alignment, read_only, .. } = self.geometry;
        // What the page cache has taken needs no order any more.
        let turn = if direct_alignment.is_some() && !read_only { self.turn.take(&self.name)? } else { None };
        let target = Target {
            file: Arc::new(self.file.try_clone()?),
            is_block_device: self.is_block_device,
            direct_alignment,
            turn,
        };
        Ok(engine::open(kind, &target, depth))
    }
}

/// Opens and locks the file of an image, as [`Image::open`] does, whatever it holds.
pub(crate) fn open_file(path: &Path, access: Access) -> Result<File, ImageError> {
    let name = path.display().to_string();
    let failed = |source| ImageError::Open { image: name.clone(), source };
    let found = open_with(path, Access { read_only: true, direct: false }, OFlags::PATH).map_err(failed)?;
    let is_block_device = check_kind(&found, &name)?;
    // Refuses a device that is mounted, or claimed by another writer.
    let exclusive = if is_block_device && !access.read_only { OFlags::EXCL } else { OFlags::empty() };
    let same = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let file = open_with(&same, access, exclusive).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => ImageError::InUse { image: name.clone() },
        Some(Errno::INVAL) if access.direct => ImageError::NoDirect { image: name.clone() },
        _ => failed(error),
    })?;
    match engine::lock(&file, !access.read_only) {
        Ok(()) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ImageError::InUse { image: name }),
        Err(error) => Err(failed(error)),
    }
}

fn open_with(path: &Path, access: Access, more: OFlags) -> io::Result<File> {
    let direct = if access.direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = (more | direct | OFlags::NOCTTY | OFlags::NONBLOCK).bits();
    OpenOptions::new().read(true).write(!access.read_only).custom_flags(flags.cast_signed()).open(path)
}

/// Whether it is a block device; refuses what is no disk at all.
fn check_kind(file: &File, name: &str) -> Result<bool, ImageError> {
    let query = |source: Errno| ImageError::Query { image: name.to_owned(), source: source.into() };
    let refused = |what| Err(ImageError::Kind { image: name.to_owned(), what });
    let stat = fs::fstat(file).map_err(query)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Ok(true),
        FileType::RegularFile => match fs::fstatfs(file).map_err(query)?.f_type {
            // Not storage, though it says it is a file; /proc/kcore even has a size.
            fs::PROC_SUPER_MAGIC => refused("a file of /proc"),
            SYSFS_MAGIC => refused("a file of /sys"),
            _ => Ok(false),
        },
        FileType::Directory => refused("a directory"),
        FileType::Fifo => refused("a FIFO"),
        FileType::Socket => refused("a socket"),
        FileType::CharacterDevice => refused("a character device"),
        _ => refused("of an unknown kind"),
    }
}

/// <linux/magic.h>
const SYSFS_MAGIC: fs::FsWord = 0x6265_6572;

/// What a descriptor tells of its image by itself.
fn measure(file: &File, is_block_device: bool) -> Result<Geometry, Errno> {
    let flags = fs::fcntl_getfl(file)?;
    let (block_size, physical) = if is_block_device {
        (fs::ioctl_blksszget(file)?, fs::ioctl_blkpbszget(file)?)
    } else {
        (FILE_BLOCK_SIZE, u32::try_from(fs::fstat(file)?.st_blksize).unwrap_or(FILE_BLOCK_SIZE))
    };
    let physical_block_size = favourite(physical, block_size);
    Ok(Geometry {
        size: size_of(file, is_block_device)?,
        block_size,
        physical_block_size,
        optimal_io_size: 0,
        alignment_offset: 0,
        discard_granularity: physical_block_size,
        max_discard: u64::MAX,
        direct_alignment: flags.contains(OFlags::DIRECT).then(|| direct_alignment(file, block_size)),
        read_only: flags & OFlags::ACCMODE == OFlags::RDONLY,
        max_queues: u16::MAX,
    })
}

fn size_of(file: &File, is_block_device: bool) -> Result<u64, Errno> {
    if is_block_device {
        // Its end is the only size that a block device tells without an ioctl.
        fs::seek(file, fs::SeekFrom::End(0))
    } else {
        Ok(u64::try_from(fs::fstat(file)?.st_size).unwrap_or(0))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "512 fits")]
const FILE_BLOCK_SIZE: u32 = SECTOR_SIZE as u32;

/// Some file systems name megabytes, which is no block size; 4 KiB is what guests' own file systems use.
fn favourite(physical: u32, block_size: u32) -> u32 {
    if physical.is_power_of_two() { physical.clamp(block_size, block_size.max(4096)) } else { block_size }
}

/// Linux before 6.1 does not tell; a misaligned transfer then fails by itself.
fn direct_alignment(file: &File, block_size: u32) -> usize {
    let told = fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let told = told.filter(|statx| StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN));
    let told = told.map(|statx| statx.stx_dio_mem_align.max(statx.stx_dio_offset_align));
    told.filter(|alignment| alignment.is_power_of_two()).unwrap_or(block_size).max(FILE_BLOCK_SIZE) as usize
}
