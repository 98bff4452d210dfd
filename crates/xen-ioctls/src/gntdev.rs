//! `/dev/xen/gntdev`: pages that another domain granted.
//!
//! Unlike foreign mappings, grants need no power over the other domain, and their pages can be
//! pinned by the kernel: O_DIRECT works on them.
//!
//! A mapping costs four system calls, a hypercall each way and work for each page; a copy costs one
//! system call and a hypercall for each 16 pages.
#![expect(unsafe_code, reason = "ioctls whose arguments hold addresses, and mapped areas")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::ProtFlags;
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::abi::linux_gntdev::{self as abi, CopyForeign, CopyPtr, GrantCopySegment};
use crate::node::{open_node, owns_node};
use crate::privcmd::address_of;
use crate::sys::{self, Mapped, Reserved, XEN_PAGE};
use crate::{DomId, Error};

const PATH: &str = "/dev/xen/gntdev";

/// The most grants the driver maps in one go, unless its parameter `limit` says less.
const MOST_GRANTS: usize = 65536;

/// The words of a mapping call that take no memory from the heap: for 34 grants.
const FEW_WORDS: usize = 36;

/// Segments of one copying call. The kernel hands Xen 16 at a time, so that more save little.
const LOT: usize = 64;

/// An open `/dev/xen/gntdev`. It cannot be restricted to a domain.
#[derive(Debug)]
pub struct Gntdev {
    node: OwnedFd,
}

owns_node!(Gntdev);

/// Granted pages at consecutive addresses, unmapped when dropped.
///
/// While they are mapped the other domain cannot have them back. Xen has unmapped them when the drop
/// returns, unless the kernel itself still holds one: then it tries again every few milliseconds,
/// and tells nobody (`gnttab_unmap_refs_async`, since Linux 5.19; before, the drop waited).
/// A buffered system call holds pages until it returns only. Direct I/O that runs in the background
/// holds them until a moment *after* it has told of its end.
#[derive(Debug)]
pub struct GrantMapping {
    // In this order: the driver's note, if it goes after the area, has Xen unmap the pages in a call that holds no lock
    // of the process's memory.
    area: Mapped,
    _prepared: Prepared,
}

/// The driver's note of grants that can be mapped at `index`.
#[derive(Debug)]
struct Prepared {
    gntdev: Arc<Gntdev>,
    index: u64,
    count: u32,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let mut argument = abi::UnmapGrantRef { index: self.index, count: self.count, pad: 0 };
        // SAFETY: UNMAP_GRANT_REF reads this struct.
        let forgotten = unsafe { sys::ioctl(self.gntdev.as_fd(), abi::UNMAP_GRANT_REF, &mut argument) };
        debug_assert!(forgotten.is_ok(), "the driver gave this index out: {forgotten:?}");
    }
}

/// One piece of a copy between a granted page and our memory.
#[derive(Clone, Copy, Debug)]
pub struct CopySegment<'a> {
    /// The granted page.
    pub reference: u32,
    /// Where in it; the segment ends in the same page.
    pub offset: u16,
    /// Our end, and with it the length.
    pub ours: VolatileSlice<'a>,
    /// Which end is written to.
    pub direction: Direction,
}

/// Which way a segment is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the granted page to us.
    FromGrant,
    /// To the granted page.
    ToGrant,
}

/// Why granted pages could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// Xen refuses this grant, or one of those that begin with it: it was never given to us, not for
    /// such an access, or not any more.
    #[error("Grant {reference} is not ours to use so")]
    Refused {
        /// The reference.
        reference: u32,
    },
    /// Kernel or Xen have no room for it now.
    #[error("There is no room to reach granted pages")]
    NoRoom,
    /// The call itself failed.
    #[error(transparent)]
    Call(Error),
}

impl Gntdev {
    /// Opens the node.
    ///
    /// # Errors
    /// [`Kind::NotOnXen`](crate::Kind::NotOnXen), [`Kind::NoPermission`](crate::Kind::NoPermission).
    pub fn open() -> Result<Self, Error> {
        open_node(PATH).map(Self::from)
    }

    /// Maps grants of `domain`, 1 to 65,536 of them, one behind the other. What was granted for
    /// reading only must be mapped with `writable` false. A reference may occur twice.
    ///
    /// # Errors
    /// [`GrantError::Refused`] with the first of them if any of them is refused: the kernel does not
    /// say which. It says the same when Xen is out of handles for mappings. Nothing is mapped then.
    pub fn map(
        self: &Arc<Self>,
        domain: DomId,
        references: &[u32],
        writable: bool,
    ) -> Result<GrantMapping, GrantError> {
        let failed = |errno| call_failed(|| format!("Mapping {} grants of domain {domain}", references.len()), errno);
        let Some(&first) = references.first().filter(|_| references.len() <= MOST_GRANTS) else {
            return Err(failed(Errno::INVAL));
        };
        let prepared = self.prepare(domain, references).map_err(failed)?;
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let area = Reserved::new(self.as_fd(), references.len() * XEN_PAGE, protection, prepared.index);
        let area = area.map_err(|errno| match errno {
            // Here are all the reasons of Xen's.
            Errno::INVAL => GrantError::Refused { reference: first },
            errno => failed(errno),
        })?;
        // SAFETY: this driver maps in mmap itself, which fails unless every grant was mapped.
        let area = unsafe { area.filled() };
        Ok(GrantMapping { area, _prepared: prepared })
    }

    /// Tells the driver which grants an mmap at the index returned is about.
    fn prepare(self: &Arc<Self>, domain: DomId, references: &[u32]) -> Result<Prepared, Errno> {
        // The struct is of variable length: count and pad, index, then the grants, two u32 each.
        let pair = |low: u32, high: u32| -> u64 { zerocopy::transmute!([low, high]) };
        let count = u32::try_from(references.len()).map_err(|_too_many| Errno::INVAL)?;
        let grants = references.iter().map(|&reference| pair(domain.get().into(), reference));
        let mut words: SmallVec<[u64; FEW_WORDS]> = [pair(count, 0), 0].into_iter().chain(grants).collect();
        // SAFETY: MAP_GRANT_REF reads the header and `count` grants behind it, all in `words`, and
        // writes the second word.
        unsafe { sys::ioctl_at(self.as_fd(), abi::MAP_GRANT_REF, words.as_mut_ptr()) }?;
        let index = words.get(1).copied().ok_or(Errno::INVAL)?;
        Ok(Prepared { gntdev: Arc::clone(self), index, count })
    }

    /// Copies between pages that `domain` granted and our memory. Segments of no length do nothing.
    /// Those to the grants come first, whatever their places.
    ///
    /// # Errors
    /// [`GrantError::Refused`] with a grant that is refused. Any number of segments may have been
    /// copied then, before and behind it.
    pub fn copy<'a>(
        &self,
        domain: DomId,
        segments: impl Iterator<Item = CopySegment<'a>> + Clone,
    ) -> Result<(), GrantError> {
        // Of the up to 16 segments that the driver takes together it notes only of the last whether our pages were
        // written to. If they were and the last one's was not, the kernel, when short of memory, could forget it.
        let towards = |direction| move |segment: &CopySegment<'_>| segment.direction == direction;
        let (to, from) = (towards(Direction::ToGrant), towards(Direction::FromGrant));
        let mut ordered = segments.clone().filter(to).chain(segments.filter(from));
        loop {
            let lot: SmallVec<[_; LOT]> = ordered.by_ref().take(LOT).collect();
            if lot.is_empty() {
                return Ok(());
            }
            self.copy_lot(domain, &lot)?;
        }
    }

    fn copy_lot(&self, domain: DomId, lot: &[CopySegment<'_>]) -> Result<(), GrantError> {
        let doing = || format!("Copying from or to grants of domain {domain}");
        let raw: Option<SmallVec<[_; LOT]>> = lot.iter().map(|segment| raw_segment(domain, segment)).collect();
        let mut raw = raw.ok_or_else(|| call_failed(doing, Errno::INVAL))?;
        let count = u32::try_from(raw.len()).map_err(|_too_many| call_failed(doing, Errno::TOOBIG))?;
        let mut call = abi::GrantCopy { count, segments: address_of(raw.as_mut_ptr()) };
        // SAFETY: GRANT_COPY reads and writes `count` segments at this address; our end of each is
        // borrowed by `lot`, as memory that anyone may write to.
        unsafe { sys::ioctl(self.as_fd(), abi::GRANT_COPY, &mut call) }.map_err(|errno| call_failed(doing, errno))?;
        lot.iter().zip(&raw).try_for_each(|(segment, raw)| judge(segment.reference, raw.status, doing))
    }
}

/// The kernel's form of a segment; none if the segment does not end in the granted page.
fn raw_segment(domain: DomId, segment: &CopySegment<'_>) -> Option<GrantCopySegment> {
    let CopySegment { reference, offset, ours, direction } = segment;
    let len = u16::try_from(ours.len()).ok().filter(|&len| usize::from(len) + usize::from(*offset) <= XEN_PAGE)?;
    let foreign = CopyPtr { foreign: CopyForeign { reference: *reference, offset: *offset, domid: domain.get() } };
    let ours = CopyPtr { virt: address_of(ours.ptr_guard_mut().as_ptr()) };
    let (source, dest, flags) = match direction {
        Direction::FromGrant => (foreign, ours, abi::GNTCOPY_SOURCE_GREF),
        Direction::ToGrant => (ours, foreign, abi::GNTCOPY_DEST_GREF),
    };
    Some(GrantCopySegment { source, dest, len, flags, status: abi::GNTST_OKAY })
}

/// What became of a segment.
fn judge(reference: u32, status: i16, doing: impl Fn() -> String) -> Result<(), GrantError> {
    match status {
        abi::GNTST_OKAY => Ok(()),
        abi::GNTST_NO_DEVICE_SPACE | abi::GNTST_EAGAIN | abi::GNTST_NO_SPACE => Err(GrantError::NoRoom),
        // Of the error without a name Xen makes use for a grant with odd flags, in use too often, or for other bytes.
        abi::GNTST_GENERAL_ERROR
        | abi::GNTST_BAD_DOMAIN
        | abi::GNTST_BAD_GNTREF
        | abi::GNTST_PERMISSION_DENIED
        | abi::GNTST_BAD_PAGE => Err(GrantError::Refused { reference }),
        status => Err(call_failed(|| format!("{} (Xen's status {status})", doing()), Errno::IO)),
    }
}

fn call_failed(doing: impl Fn() -> String, errno: Errno) -> GrantError {
    match errno {
        Errno::NOMEM | Errno::AGAIN => GrantError::NoRoom,
        errno => GrantError::Call(Error::new(doing(), errno)),
    }
}

impl GrantMapping {
    /// The granted memory, which its owner writes at any time. Writing to what was mapped for reading
    /// is a fault, as with any read-only mapping.
    pub fn memory(&self) -> VolatileSlice<'_> {
        self.area.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> DomId {
        DomId::new(5).unwrap()
    }

    fn segment(offset: u16, buffer: &mut [u8], direction: Direction) -> CopySegment<'_> {
        CopySegment { reference: 77, offset, ours: VolatileSlice::from(buffer), direction }
    }

    fn raw(offset: u16, buffer: &mut [u8], direction: Direction) -> Option<GrantCopySegment> {
        raw_segment(domain(), &segment(offset, buffer, direction))
    }

    fn null() -> Arc<Gntdev> {
        Arc::new(Gntdev::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())))
    }

    #[test]
    fn a_copy_says_which_end_is_the_grant() {
        let mut buffer = [0; 16];
        let from_grant = raw(8, &mut buffer, Direction::FromGrant).unwrap();
        assert_eq!((from_grant.flags, from_grant.len), (abi::GNTCOPY_SOURCE_GREF, 16));
        let to_grant = raw(8, &mut buffer, Direction::ToGrant).unwrap();
        assert_eq!((to_grant.flags, to_grant.len), (abi::GNTCOPY_DEST_GREF, 16));
        // SAFETY: the flags say that this end is a grant.
        let grant = unsafe { to_grant.dest.foreign };
        assert_eq!((grant.reference, grant.offset, grant.domid), (77, 8, 5));
        // SAFETY: the flags say that this end is an address.
        assert_eq!(unsafe { to_grant.source.virt }, buffer.as_ptr().addr() as u64);
    }

    #[test]
    fn a_copy_across_the_end_of_a_granted_page_is_refused() {
        let mut buffer = [0; 16];
        assert!(raw(4080, &mut buffer, Direction::ToGrant).is_some());
        assert!(raw(4081, &mut buffer, Direction::ToGrant).is_none());
        let refused = null().copy(domain(), [segment(u16::MAX, &mut buffer, Direction::FromGrant)].into_iter());
        assert!(matches!(&refused, Err(GrantError::Call(error)) if error.errno() == Errno::INVAL), "{refused:?}");
    }

    #[test]
    fn b11_the_guests_mistakes_are_told_from_a_lack_of_room_and_from_ours() {
        let judge = |status| judge(9, status, String::new);
        assert!(judge(abi::GNTST_OKAY).is_ok());
        for refused in [abi::GNTST_GENERAL_ERROR, abi::GNTST_BAD_DOMAIN, abi::GNTST_BAD_GNTREF, abi::GNTST_BAD_PAGE] {
            assert!(matches!(judge(refused), Err(GrantError::Refused { reference: 9 })), "{refused}");
        }
        assert!(matches!(judge(abi::GNTST_PERMISSION_DENIED), Err(GrantError::Refused { reference: 9 })));
        for full in [abi::GNTST_NO_DEVICE_SPACE, abi::GNTST_EAGAIN, abi::GNTST_NO_SPACE] {
            assert!(matches!(judge(full), Err(GrantError::NoRoom)), "{full}");
        }
        for odd in [1, -10, i16::MIN] {
            assert!(matches!(judge(odd), Err(GrantError::Call(_))), "{odd}");
        }
    }

    #[test]
    fn a_node_that_knows_no_grants_maps_and_copies_none() {
        let gntdev = null();
        let many = vec![1; MOST_GRANTS + 1];
        let cases = [(&[1_u32, 2][..], Errno::NOTTY), (&[][..], Errno::INVAL), (&many[..], Errno::INVAL)];
        for (references, errno) in cases {
            let refused = gntdev.map(domain(), references, false).unwrap_err();
            assert!(matches!(&refused, GrantError::Call(error) if error.errno() == errno), "{refused}");
        }
        let mut buffer = [0; 16];
        let refused = gntdev.copy(domain(), [segment(0, &mut buffer, Direction::ToGrant)].into_iter()).unwrap_err();
        assert!(matches!(&refused, GrantError::Call(error) if error.errno() == Errno::NOTTY), "{refused}");
        assert!(refused.to_string().contains("domain 5"), "{refused}");
        assert!(gntdev.copy(domain(), std::iter::empty()).is_ok());
    }
}
