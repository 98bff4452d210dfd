//! `/dev/xen/gntdev`: pages that another domain granted.
//!
//! Unlike foreign mappings, grants need no power over the other domain, and their pages can be
//! pinned by the kernel: O_DIRECT works on them.
#![expect(unsafe_code, reason = "ioctls whose arguments hold addresses, and mapped areas")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::ProtFlags;
use vm_memory::VolatileSlice;

use crate::abi::linux_gntdev::{self as abi, CopyForeign, CopyPtr, GrantCopySegment};
use crate::node::{open_node, owns_node};
use crate::privcmd::address_of;
use crate::sys::{self, Mapped, Reserved, XEN_PAGE};
use crate::{DomId, Error, Port};

const PATH: &str = "/dev/xen/gntdev";

/// The most grants the driver maps in one go.
const MOST_GRANTS: usize = 65536;

/// An open `/dev/xen/gntdev`. It cannot be restricted to a domain.
#[derive(Debug)]
pub struct Gntdev {
    node: OwnedFd,
}

owns_node!(Gntdev);

/// Granted pages at consecutive addresses, unmapped when dropped.
#[derive(Debug)]
pub struct GrantMapping {
    area: Mapped,
    prepared: Prepared,
}

/// The driver's note of grants that can be mapped at `index`. It is what a notice on unmapping is
/// attached to, so it stays as long as the mapping does.
#[derive(Debug)]
struct Prepared {
    gntdev: Arc<Gntdev>,
    index: u64,
    count: usize,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let count = u32::try_from(self.count).unwrap_or(u32::MAX);
        let mut argument = abi::UnmapGrantRef { index: self.index, count, pad: 0 };
        // SAFETY: UNMAP_GRANT_REF reads this struct.
        let forgotten = unsafe { sys::ioctl(self.gntdev.as_fd(), abi::UNMAP_GRANT_REF, &mut argument) };
        debug_assert!(forgotten.is_ok(), "the driver gave this index out: {forgotten:?}");
    }
}

/// What the kernel does when a mapping goes, even if by the process's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapNotice {
    /// Clears this byte of the mapping.
    ClearByte(usize),
    /// Signals this port of ours.
    Signal(Port),
}

/// One piece of a copy between granted pages and our memory. Neither end may cross a page.
#[derive(Debug)]
pub struct CopySegment<'a> {
    /// The grant's domain and reference.
    pub grant: (DomId, u32),
    /// Where in the granted page.
    pub offset: u16,
    /// Our end, and with it length and direction.
    pub ours: CopyEnd<'a>,
}

/// Our end of a copy.
#[derive(Debug)]
pub enum CopyEnd<'a> {
    /// Filled from the grant.
    To(&'a mut [u8]),
    /// Copied into the grant.
    From(&'a [u8]),
}

impl Gntdev {
    /// Opens the node.
    ///
    /// # Errors
    /// [`Kind::NotOnXen`](crate::Kind::NotOnXen), [`Kind::NoPermission`](crate::Kind::NoPermission).
    pub fn open() -> Result<Self, Error> {
        open_node(PATH).map(Self::from)
    }

    /// Bounds how many grants may be mapped through this descriptor at a time.
    ///
    /// # Errors
    /// `EINVAL`: more than the driver's own bound.
    pub fn set_max_grants(&self, count: u32) -> Result<(), Error> {
        let mut argument = count;
        // SAFETY: SET_MAX_GRANTS reads a u32.
        unsafe { sys::ioctl(self.as_fd(), abi::SET_MAX_GRANTS, &mut argument) }
            .map(drop)
            .map_err(|errno| Error::new("Bounding the number of grants", errno))
    }

    /// Maps grants of `domain`, one behind the other. What was granted for reading only must be
    /// mapped with `writable` false.
    ///
    /// # Errors
    /// A reference that is not granted to us, or not for writing: `EINVAL` and the like. Nothing is
    /// mapped then.
    pub fn map(self: &Arc<Self>, domain: DomId, references: &[u32], writable: bool) -> Result<GrantMapping, Error> {
        let failed = |errno| Error::new(format!("Mapping {} grants of domain {domain}", references.len()), errno);
        if references.is_empty() || references.len() > MOST_GRANTS {
            return Err(failed(Errno::INVAL));
        }
        let index = self.prepare(domain, references).map_err(failed)?;
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let prepared = Prepared { gntdev: Arc::clone(self), index, count: references.len() };
        let area = Reserved::new(self.as_fd(), references.len() * XEN_PAGE, protection, index).map_err(failed)?;
        // SAFETY: this driver maps in mmap itself, which fails unless every grant was mapped.
        let area = unsafe { area.filled() };
        Ok(GrantMapping { area, prepared })
    }

    /// Tells the driver which grants the next mmap at the returned offset is about.
    fn prepare(&self, domain: DomId, references: &[u32]) -> Result<u64, Errno> {
        // The struct is of variable length: count and pad, index, then the grants, two u32 each.
        let pair = |low: u32, high: u32| -> u64 { zerocopy::transmute!([low, high]) };
        let count = u32::try_from(references.len()).map_err(|_too_many| Errno::INVAL)?;
        let grants = references.iter().map(|&reference| pair(domain.get().into(), reference));
        let mut words: Vec<u64> = [pair(count, 0), 0].into_iter().chain(grants).collect();
        // SAFETY: MAP_GRANT_REF reads the header and `count` grants behind it, all in `words`, and
        // writes the second word.
        unsafe { sys::ioctl_at(self.as_fd(), abi::MAP_GRANT_REF, words.as_mut_ptr()) }?;
        words.get(1).copied().ok_or(Errno::INVAL)
    }

    /// Copies, in one hypercall, every segment. Each has an outcome of its own: Xen's `GNTST_*` number
    /// (xen/public/grant_table.h), 0 for done.
    ///
    /// # Errors
    /// The call as a whole failed: `EFAULT`, or `EINVAL` for a segment that crosses a page.
    pub fn copy(&self, segments: &mut [CopySegment<'_>]) -> Result<Vec<i16>, Error> {
        let failed = |errno| Error::new("Copying from or to grants", errno);
        let mut raw = Vec::with_capacity(segments.len());
        for segment in segments.iter_mut() {
            raw.push(raw_segment(segment).ok_or_else(|| failed(Errno::INVAL))?);
        }
        let count = u32::try_from(raw.len()).map_err(|_too_many| failed(Errno::TOOBIG))?;
        let mut call = abi::GrantCopy { count, segments: address_of(raw.as_mut_ptr()) };
        // SAFETY: GRANT_COPY reads and writes `count` segments at this address; the memory of each is
        // borrowed by `segments`, mutably where it is written.
        unsafe { sys::ioctl(self.as_fd(), abi::GRANT_COPY, &mut call) }.map_err(failed)?;
        Ok(raw.iter().map(|segment| segment.status).collect())
    }
}

fn raw_segment(segment: &mut CopySegment<'_>) -> Option<GrantCopySegment> {
    let (domain, reference) = segment.grant;
    let foreign = CopyPtr { foreign: CopyForeign { reference, offset: segment.offset, domid: domain.get() } };
    let (ours, len, to_us) = match &mut segment.ours {
        CopyEnd::To(buffer) => (address_of(buffer.as_mut_ptr()), buffer.len(), true),
        CopyEnd::From(buffer) => (address_of(buffer.as_ptr().cast_mut()), buffer.len(), false),
    };
    let ours = CopyPtr { virt: ours };
    let (source, dest, flags) = match to_us {
        true => (foreign, ours, abi::GNTCOPY_SOURCE_GREF),
        false => (ours, foreign, abi::GNTCOPY_DEST_GREF),
    };
    let len = u16::try_from(len).ok().filter(|&len| usize::from(len) + usize::from(segment.offset) <= XEN_PAGE)?;
    Some(GrantCopySegment { source, dest, len, flags, status: 0 })
}

impl GrantMapping {
    /// The granted memory, which its owner writes at any time. Writing to what was mapped for reading
    /// is a fault, as with any read-only mapping.
    pub fn memory(&self) -> VolatileSlice<'_> {
        self.area.memory()
    }

    /// Has the kernel do something when this mapping goes.
    ///
    /// # Errors
    /// `EINVAL`: the byte is not in the mapping, or the mapping is read-only. `ENOENT`.
    pub fn notify_on_unmap(&self, notice: UnmapNotice) -> Result<(), Error> {
        let (byte, action, port) = match notice {
            UnmapNotice::ClearByte(byte) => (byte, abi::UNMAP_NOTIFY_CLEAR_BYTE, 0),
            UnmapNotice::Signal(port) => (0, abi::UNMAP_NOTIFY_SEND_EVENT, port.0),
        };
        let index = self.prepared.index + byte as u64;
        let mut argument = abi::UnmapNotify { index, action, event_channel_port: port };
        // SAFETY: SET_UNMAP_NOTIFY reads this struct.
        unsafe { sys::ioctl(self.prepared.gntdev.as_fd(), abi::SET_UNMAP_NOTIFY, &mut argument) }
            .map(drop)
            .map_err(|errno| Error::new("Asking for a notice on unmapping", errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment<'a>(offset: u16, ours: CopyEnd<'a>) -> CopySegment<'a> {
        CopySegment { grant: (DomId::new(5).unwrap(), 77), offset, ours }
    }

    #[test]
    fn a_copy_says_which_end_is_the_grant() {
        let mut buffer = [0; 16];
        let to_us = raw_segment(&mut segment(8, CopyEnd::To(&mut buffer))).unwrap();
        assert_eq!((to_us.flags, to_us.len), (abi::GNTCOPY_SOURCE_GREF, 16));
        let from_us = raw_segment(&mut segment(8, CopyEnd::From(&buffer))).unwrap();
        assert_eq!((from_us.flags, from_us.len), (abi::GNTCOPY_DEST_GREF, 16));
        // SAFETY: the flags say that this end is a grant.
        let grant = unsafe { from_us.dest.foreign };
        assert_eq!((grant.reference, grant.offset, grant.domid), (77, 8, 5));
    }

    #[test]
    fn a_copy_across_the_end_of_a_granted_page_is_refused() {
        let buffer = [0; 16];
        assert!(raw_segment(&mut segment(4080, CopyEnd::From(&buffer))).is_some());
        assert!(raw_segment(&mut segment(4081, CopyEnd::From(&buffer))).is_none());
    }

    #[test]
    fn a_node_that_knows_no_grants_maps_none() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let gntdev = Arc::new(Gntdev::from(null));
        let domain = DomId::new(5).unwrap();
        assert_eq!(gntdev.map(domain, &[1, 2], false).unwrap_err().errno(), Errno::NOTTY);
        assert_eq!(gntdev.map(domain, &[], false).unwrap_err().errno(), Errno::INVAL);
    }
}
