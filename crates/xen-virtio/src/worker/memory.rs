//! The guest's pages, as Xen maps them.

use std::io;
use std::sync::Arc;

use guest_memory::{MapError, Mapping, PageSource};
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use xen_ioctls::{DomId, ForeignMapping, Gfn, Privcmd};

/// Foreign mappings of one guest.
pub(super) struct ForeignPages {
    pub(super) privcmd: Arc<Privcmd>,
    pub(super) domain: DomId,
}

impl PageSource for ForeignPages {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let frames: Vec<Gfn> = frames.iter().copied().map(Gfn).collect();
        match ForeignMapping::new(&self.privcmd, self.domain, &frames) {
            Ok(mapping) => Ok(Box::new(Foreign(mapping))),
            Err(error) => Err(translate(error)),
        }
    }
}

struct Foreign(ForeignMapping);

impl Mapping for Foreign {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

/// Frames without memory are the guest's mistake, a host without room is nobody's.
fn translate(error: xen_ioctls::MapError) -> MapError {
    match error {
        xen_ioctls::MapError::Pages(pages) if pages.iter().any(|page| page.errno == Errno::NOMEM) => MapError::Busy,
        xen_ioctls::MapError::Pages(pages) => {
            let bit = |index: usize| u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0);
            MapError::Holes(pages.iter().fold(0, |mask, page| mask | bit(page.index)))
        }
        xen_ioctls::MapError::Call(error) if error.errno() == Errno::NOMEM => MapError::Busy,
        xen_ioctls::MapError::Call(error) => MapError::Host(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use xen_ioctls::PageError;

    use super::*;

    fn pages(errors: &[(usize, Errno)]) -> MapError {
        let pages = errors.iter().map(|&(index, errno)| PageError { index, errno }).collect();
        translate(xen_ioctls::MapError::Pages(pages))
    }

    #[test]
    fn b05_frames_without_memory_are_named_by_their_bits() {
        let holes = pages(&[(0, Errno::INVAL), (5, Errno::NOENT), (63, Errno::INVAL)]);

        assert!(matches!(holes, MapError::Holes(mask) if mask == 1 | 1 << 5 | 1 << 63), "{holes:?}");
    }

    #[test]
    fn b05_a_host_without_room_is_not_the_guests_mistake() {
        assert!(matches!(pages(&[(0, Errno::INVAL), (1, Errno::NOMEM)]), MapError::Busy));
    }
}
