//! The guest's pages, as Xen maps them.

use std::io;
use std::sync::Arc;

use guest_memory::{Access, GrantCopy, GrantError, GrantSource, MapError, Mapping, PageSource};
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use xen_ioctls::{CopySegment, Direction, DomId, ForeignMapping, Gfn, Gntdev, GrantMapping, Privcmd};

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

/// Grants of one guest.
pub(super) struct GrantedPages {
    pub(super) gntdev: Arc<Gntdev>,
    pub(super) domain: DomId,
}

impl GrantSource for GrantedPages {
    fn map(&self, references: &[u32], access: Access) -> Result<Box<dyn Mapping>, GrantError> {
        match self.gntdev.map(self.domain, references, access == Access::Write) {
            Ok(mapping) => Ok(Box::new(Granted(mapping))),
            Err(error) => Err(translate_grant(error)),
        }
    }

    fn copy(&self, pieces: &[GrantCopy<'_>]) -> Result<(), GrantError> {
        self.gntdev.copy(self.domain, pieces.iter().map(segment)).map_err(translate_grant)
    }
}

struct Granted(GrantMapping);

impl Mapping for Granted {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

fn segment<'a>(piece: &GrantCopy<'a>) -> CopySegment<'a> {
    let GrantCopy { reference, offset, ours, access } = *piece;
    let direction = match access {
        Access::Read => Direction::FromGrant,
        Access::Write => Direction::ToGrant,
    };
    CopySegment { reference, offset, ours, direction }
}

/// What the guest did not grant is its mistake.
fn translate_grant(error: xen_ioctls::GrantError) -> GrantError {
    match error {
        xen_ioctls::GrantError::Refused { reference } => GrantError::Refused { reference },
        xen_ioctls::GrantError::NoRoom => GrantError::Busy,
        xen_ioctls::GrantError::Call(error) => GrantError::Host(io::Error::other(error)),
    }
}

/// Frames without memory are the guest's mistake, a host without room is nobody's, and what Xen does not let us map the
/// operator's.
fn translate(error: xen_ioctls::MapError) -> MapError {
    match error {
        xen_ioctls::MapError::Pages(pages) if pages.iter().any(|page| is_refusal(page.errno)) => {
            MapError::Host(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "Xen does not let this domain map the guest's memory: let its security policy (FLASK) allow map_read and \
                 map_write, or have the guest share its memory by grants (grant_usage=1, and CONFIG_XEN_VIRTIO=y in its kernel)",
            ))
        }
        xen_ioctls::MapError::Pages(pages) if pages.iter().any(|page| page.errno == Errno::NOMEM) => MapError::Busy,
        xen_ioctls::MapError::Pages(pages) => {
            let bit = |index: usize| u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0);
            MapError::Holes(pages.iter().fold(0, |mask, page| mask | bit(page.index)))
        }
        xen_ioctls::MapError::Call(error) if error.errno() == Errno::NOMEM => MapError::Busy,
        xen_ioctls::MapError::Call(error) => MapError::Host(io::Error::other(error)),
    }
}

/// Xen without FLASK says the one, FLASK the other.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

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

    #[test]
    fn what_xen_does_not_allow_is_no_hole_and_is_told_with_the_remedy() {
        for errno in [Errno::PERM, Errno::ACCESS] {
            let MapError::Host(error) = pages(&[(0, errno), (1, errno)]) else { panic!("{errno} is taken for a hole") };
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("grant_usage=1"), "{error}");
        }
    }

    #[test]
    fn a_copy_to_the_guest_is_one_to_its_grant() {
        let mut buffer = [0; 8];
        let mut copy = |access| {
            let ours = VolatileSlice::from(&mut buffer[..]);
            segment(&GrantCopy { reference: 7, offset: 4088, ours, access }).direction
        };

        assert_eq!((copy(Access::Write), copy(Access::Read)), (Direction::ToGrant, Direction::FromGrant));
    }

    #[test]
    fn a_node_that_maps_nothing_is_the_hosts_fault() {
        let privcmd = Arc::new(Privcmd::from(OwnedFd::from(File::open("/dev/null").unwrap())));
        let mapped = ForeignPages { privcmd, domain: DomId::new(3).unwrap() }.map(&[7]).err();

        assert!(matches!(mapped, Some(MapError::Host(_))), "{mapped:?}");
    }

    #[test]
    fn what_a_guest_did_not_grant_is_its_mistake_and_a_host_without_room_is_not() {
        let refused = translate_grant(xen_ioctls::GrantError::Refused { reference: 7 });
        let busy = translate_grant(xen_ioctls::GrantError::NoRoom);

        assert!(matches!(refused, GrantError::Refused { reference: 7 }), "{refused:?}");
        assert!(matches!(busy, GrantError::Busy), "{busy:?}");
    }

    #[test]
    fn a_node_that_knows_no_grants_is_the_hosts_fault() {
        let gntdev = Arc::new(Gntdev::from(OwnedFd::from(File::open("/dev/null").unwrap())));
        let grants = GrantedPages { gntdev, domain: DomId::new(3).unwrap() };
        let mut buffer = [0; 8];
        let ours = VolatileSlice::from(&mut buffer[..]);

        let mapped = grants.map(&[7], Access::Read).err();
        let copied = grants.copy(&[GrantCopy { reference: 7, offset: 0, ours, access: Access::Read }]);

        assert!(matches!(mapped, Some(GrantError::Host(_))), "{mapped:?}");
        assert!(matches!(copied, Err(GrantError::Host(_))), "{copied:?}");
    }
}
