//! The memory that a front-end shares: its table of regions, and the way from there to pages.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use guest_memory::{Budget, LayoutError, MapCache, MapError, Mapping, PageSource, PlainMemory, SharedMemory};
use rustix::fs::{FileType, fstat};
use vhost::vhost_user::message::VhostUserMemoryRegion;

/// The most regions a table may have: what the kernel's own back-ends allow, so that no front-end needs more.
pub(crate) const REGIONS_MAX: usize = 509;

/// Mapping a piece of a region costs nothing and takes nothing from anybody, so it is never undone to make room. What
/// the cache remembers of a guest takes it about 3 MiB for each GiB that I/O has touched.
const BUDGET: Budget = Budget { kept: u64::MAX, at_most: u64::MAX };

/// One connection's memory table.
pub(crate) struct Memory {
    regions: Vec<Region>,
    pages: Pages,
    cache: Arc<MapCache>,
}

/// Why memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("The memory table has more than {REGIONS_MAX} regions")]
    TooMany,
    #[error("Memory region of {len:#x} bytes at {guest:#x} is not within a regular file, which has {file:#x} bytes")]
    NotInFile { guest: u64, len: u64, file: u64 },
    #[error("Mapping the memory region of {len:#x} bytes at {guest:#x} failed: {source}")]
    Map { guest: u64, len: u64, source: io::Error },
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("Looking at a memory region's file failed: {0}")]
    File(#[from] io::Error),
}

impl From<MemoryError> for vhost::vhost_user::Error {
    fn from(error: MemoryError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

impl Memory {
    pub(crate) fn new() -> Result<Self, MemoryError> {
        let pages = Pages(Arc::new(RwLock::new(PlainMemory::new([])?)));
        Ok(Self { regions: Vec::new(), cache: MapCache::new(pages.clone(), BUDGET), pages })
    }

    pub(crate) fn cache(&self) -> &Arc<MapCache> {
        &self.cache
    }

    /// The guest address of what the front-end has at `user` of its own address space.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user).filter(|&offset| offset < region.len)?;
            region.guest.checked_add(offset)
        })
    }

    /// Takes these regions in the place of all before.
    pub(crate) fn replace(&mut self, table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<(), MemoryError> {
        let regions = table.iter().zip(files).map(|(region, file)| Region::map(region, file));
        self.set(regions.collect::<Result<_, _>>()?)
    }

    /// QEMU 7 adds and removes each region once for each pair of a network card's queues. So what is there already may
    /// be added, and what is gone already removed.
    pub(crate) fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> Result<(), MemoryError> {
        if self.regions.iter().any(|known| known.is(region)) {
            return Ok(());
        }
        let mut regions = self.regions.clone();
        regions.push(Region::map(region, file)?);
        self.set(regions)
    }

    /// See [`add`](Self::add).
    pub(crate) fn remove(&mut self, removed: &VhostUserMemoryRegion) -> Result<(), MemoryError> {
        let mut regions = self.regions.clone();
        regions.retain(|region| !region.is(removed));
        self.set(regions)
    }

    /// From here on no look-up finds older memory; what requests in flight hold stays mapped until they end.
    fn set(&mut self, regions: Vec<Region>) -> Result<(), MemoryError> {
        if regions.len() > REGIONS_MAX {
            return Err(MemoryError::TooMany);
        }
        let plain = PlainMemory::new(regions.iter().map(|region| (region.guest, region.mapping.clone())))?;
        let before = std::mem::replace(&mut *self.pages.0.write().unwrap_or_else(PoisonError::into_inner), plain);
        self.cache.invalidate();
        self.cache.sweep();
        self.regions = regions;
        drop(before);
        Ok(())
    }
}

#[derive(Clone)]
struct Region {
    guest: u64,
    user: u64,
    len: u64,
    mapping: Arc<dyn Mapping>,
}

impl Region {
    /// Maps what the front-end has checked for overflows by `vhost`, and for nothing else.
    fn map(region: &VhostUserMemoryRegion, file: File) -> Result<Self, MemoryError> {
        let (guest, user, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let stat = fstat(&file).map_err(io::Error::from)?;
        // Beyond its file's end, memory can be mapped but not touched.
        let end = region.mmap_offset.saturating_add(len);
        let file_len = u64::try_from(stat.st_size).unwrap_or(0);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || end > file_len {
            return Err(MemoryError::NotInFile { guest, len, file: file_len });
        }
        // Regions may end within a page, as libblkio's do; pages are mapped whole.
        let mapping = usize::try_from(len)
            .map_err(io::Error::other)
            .and_then(|len| SharedMemory::of(file.into(), region.mmap_offset, len))
            .map_err(|source| MemoryError::Map { guest, len, source })?;
        Ok(Self { guest, user, len, mapping: Arc::new(mapping) })
    }

    /// What a front-end knows a region by.
    fn is(&self, other: &VhostUserMemoryRegion) -> bool {
        let named = (other.guest_phys_addr, other.user_addr, other.memory_size);
        (self.guest, self.user, self.len) == named
    }
}

/// The table's pages as the cache asks for them.
#[derive(Clone)]
struct Pages(Arc<RwLock<PlainMemory>>);

impl PageSource for Pages {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).map(frames)
    }

    fn direct_io_capable(&self) -> bool {
        true
    }
}
