//! Where guest pages come from: the two traits that the program implements for its hypervisor.

use std::io;

use vm_memory::VolatileSlice;

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

/// Host memory that shows guest frames. Dropping it unmaps; no lock is held then.
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
