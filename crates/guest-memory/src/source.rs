//! Where guest pages come from: the traits that the program implements for its hypervisor.

use std::io;

use vm_memory::VolatileSlice;

/// All the ways to a guest's pages that a device has. Which of them an address takes is said by the address itself; see
/// [`Route`](crate::Route).
pub struct Sources {
    pub(crate) frames: Option<Box<dyn PageSource>>,
    pub(crate) grants: Option<Box<dyn GrantSource>>,
    pub(crate) copied_together: usize,
}

/// 64 KiB. Up to there, and as far as we have measured, a copy costs about half of what a mapping does: that takes two
/// system calls more, work for each page in kernel and Xen, and a flush of TLBs. Beyond, a copy takes memory, and what
/// the processor's caches hold.
const COPIED_TOGETHER: usize = 64 << 10;

impl Sources {
    /// Grants alone: an address that is none is the guest's fault, and no frame of the guest is ever mapped.
    pub fn grants(source: impl GrantSource) -> Self {
        Self { frames: None, grants: Some(Box::new(source)), copied_together: COPIED_TOGETHER }
    }

    /// These and grants.
    #[must_use]
    pub fn with_grants(self, source: impl GrantSource) -> Self {
        Self { grants: Some(Box::new(source)), ..self }
    }

    /// Where granted memory of a request, in one direction, is no more than these bytes it is copied, else mapped; 64 KiB
    /// unless said.
    #[must_use]
    pub fn copying_up_to(self, bytes: usize) -> Self {
        Self { copied_together: bytes, ..self }
    }
}

impl<S: PageSource> From<S> for Sources {
    fn from(frames: S) -> Self {
        Self { frames: Some(Box::new(frames)), grants: None, copied_together: COPIED_TOGETHER }
    }
}

/// Maps guest frames. Called by any lane that misses, by several at a time, without a lock held.
pub trait PageSource: Send + Sync + 'static {
    /// Maps `frames` (guest frame numbers, 1 to 64 of them, ascending) one behind the other at consecutive host
    /// addresses, readable and writable.
    ///
    /// A source whose memory does not lie so may map a leading part of them: the mapping's length says how many, at
    /// least one. The rest is then asked for by a call of its own.
    ///
    /// A frame number is the guest's word. No page of a mapping may be one without memory behind it: under Xen,
    /// touching such a page kills the process, and lending it to a system call can stop the host's kernel.
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError>;

    /// Whether the kernel can pin these pages, as O_DIRECT, registered buffers and zero-copy sends need.
    ///
    /// Xen's foreign mappings are `VM_PFNMAP`: such calls fail on them with EFAULT.
    fn direct_io_capable(&self) -> bool {
        false
    }
}

/// Reaches pages that the guest has granted to this domain (Xen, public/grant_table.h). Called by any lane, by several at
/// a time, without a lock held.
///
/// A reference is the guest's word: it may name a page granted to someone else, for reading only, or not any more.
pub trait GrantSource: Send + Sync + 'static {
    /// Maps granted pages, one behind the other in the order of `references` (1 to 65,536 of them), until the mapping is
    /// dropped. The guest cannot take a page back while it is mapped.
    ///
    /// # Errors
    /// Nothing is mapped if one of them cannot be.
    fn map(&self, references: &[u32], access: Access) -> Result<Box<dyn Mapping>, GrantError>;

    /// Copies between granted pages and our memory, all pieces in one call of the hypervisor.
    ///
    /// # Errors
    /// Any number of the pieces may have been copied if one of them cannot be.
    fn copy(&self, pieces: &[GrantCopy<'_>]) -> Result<(), GrantError>;
}

/// What a device does with guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// It reads. A driver may have granted the page for no more than that.
    Read,
    /// It reads and writes.
    Write,
}

/// A piece of a granted page to be copied.
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The page.
    pub reference: u32,
    /// Where in the page; the piece ends in the same page.
    pub offset: u16,
    /// Our end, and with it the length.
    pub ours: VolatileSlice<'a>,
    /// Who is written to: with [`Access::Read`] we, with [`Access::Write`] the guest.
    pub access: Access,
}

/// Why granted pages could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The guest's fault: it has not granted this page to us, not for this access, or not any more.
    #[error("Grant {reference} is not to be had")]
    Refused {
        /// The reference, or the first of several of which one is at fault.
        reference: u32,
    },
    /// The host has no room for it now; later it may.
    #[error("The host has no resources left to reach granted pages")]
    Busy,
    /// The call itself failed.
    #[error("Reaching granted pages failed")]
    Host(#[source] io::Error),
}

/// Host memory that shows guest frames or granted pages. Dropping it unmaps; no lock is held then.
pub trait Mapping: Send + Sync + 'static {
    /// All of it, the same at each call: a whole number of pages, page aligned.
    fn memory(&self) -> VolatileSlice<'_>;
}

/// Why frames could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Some frames have no memory behind them; nothing was mapped.
    #[error("No memory behind some of the guest's frames (bit mask {0:#x})")]
    Holes(
        /// Bit i is set when `frames[i]` is one of them. All of them must be named, so that the others can be mapped.
        u64,
    ),
    /// The host has no room for it now; later it may.
    #[error("The host has no resources left to map guest memory")]
    Busy,
    /// The mapping call itself failed.
    #[error("Mapping guest memory failed")]
    Host(#[source] io::Error),
}
