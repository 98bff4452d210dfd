//! What this crate needs from Xen, for one guest.
//!
//! [`Hypervisor`] is the control side (IOREQ servers, windows, interrupts), [`EventChannels`] the
//! wake-ups, [`SharedPage`] the memory both sides write. `domain.rs` implements them over the
//! kernel's devices; `testkit` has a Xen that lives in the test's process. Errors keep the errno,
//! because what to do next depends on it.

use std::error::Error;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use io_bus::Window;
use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// An IOREQ server of a guest; Xen numbers them from 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u16);

/// An event channel as the guest's side of it is numbered (`vp_eport` of a slot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePort(pub u32);

/// An event channel as this domain's side of it is numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalPort(pub u32);

/// Whether Xen may post writes without waiting for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffering {
    /// Each access is answered on its own. The only choice on Arm.
    Off,
    /// x86: writes to windows of the kind Xen buffers go through a ring (`buffered_iopage`).
    On,
}

/// The control side of one guest. Any thread may call it; each call is one hypercall.
pub trait Hypervisor: Send + Sync {
    /// How many vCPUs the guest can have at most, those offline included.
    ///
    /// # Errors
    /// `ESRCH`: the guest is gone. So for each of these.
    fn vcpus(&self) -> Result<u32, XenError>;

    /// Makes an IOREQ server, not enabled and without windows.
    ///
    /// # Errors
    /// `ENOSPC`: the guest has its eight servers.
    fn create_server(&self, buffering: Buffering) -> Result<ServerId, XenError>;

    /// Ends a server. A vCPU that waits for it stays blocked for ever, hence see to it first.
    ///
    /// # Errors
    /// `EPERM`: another domain made it.
    fn destroy_server(&self, server: ServerId) -> Result<(), XenError>;

    /// Lets a server get requests, or no more of them. The guest stands still meanwhile.
    ///
    /// # Errors
    /// As of any hypercall.
    fn set_enabled(&self, server: ServerId, enabled: bool) -> Result<(), XenError>;

    /// Sends the accesses in `window` to a server.
    ///
    /// # Errors
    /// `EEXIST`: the server has a window there. `ENOSPC`: it has 256 already.
    fn map_window(&self, server: ServerId, window: Window) -> Result<(), XenError>;

    /// Undoes [`map_window`](Self::map_window), for the very same window.
    ///
    /// # Errors
    /// `ENOENT`: there is no such window.
    fn unmap_window(&self, server: ServerId, window: Window) -> Result<(), XenError>;

    /// Maps the page of slots.
    ///
    /// # Errors
    /// As of any mapping.
    fn ioreq_page(&self, server: ServerId) -> Result<Arc<dyn SharedPage>, XenError>;

    /// Maps the page of buffered writes, and says which channel announces them.
    ///
    /// # Errors
    /// The server was made without.
    fn buffered_page(&self, server: ServerId) -> Result<(Arc<dyn SharedPage>, RemotePort), XenError>;

    /// Sets an interrupt line of the guest: `irq` counts as Xen does, shared interrupts from 32 on.
    ///
    /// # Errors
    /// `EINVAL`: the guest has no such line, or a passed-through device holds it.
    fn set_irq_level(&self, irq: u32, high: bool) -> Result<(), XenError>;

    /// Has the kernel set an interrupt line high each time `event`, an eventfd, is written, until what is returned is
    /// dropped. It does so before the write returns, and tells nobody if it fails.
    ///
    /// # Errors
    /// `ENOTTY`: the kernel has no such way.
    fn tie_irq(&self, irq: u32, event: BorrowedFd<'_>) -> Result<Box<dyn Send + Sync>, XenError>;
}

/// The event channels of one pump. Dropping it closes all it bound.
pub trait EventChannels: Send + Sync {
    /// Binds to the guest's end of a channel. It counts as fired once, at once.
    ///
    /// # Errors
    /// `EINVAL`: no such end, or someone else is bound to it.
    fn bind(&self, remote: RemotePort) -> Result<LocalPort, XenError>;

    /// Sleeps until something fires, and writes the ports that did; each of them stays masked until
    /// [`unmask`](Self::unmask)ed.
    ///
    /// # Errors
    /// Only such as make waiting impossible.
    fn wait(&self, fired: &mut [LocalPort]) -> Result<Wake, XenError>;

    /// Lets ports fire again; one that was signalled while masked fires at once.
    ///
    /// # Errors
    /// As of any write to the device.
    fn unmask(&self, ports: &[LocalPort]) -> Result<(), XenError>;

    /// Signals the guest's end.
    ///
    /// # Errors
    /// The guest is gone.
    fn notify(&self, port: LocalPort) -> Result<(), XenError>;

    /// Forgets what fired and was not read yet, after an overflow. Masked ports stay masked.
    ///
    /// # Errors
    /// As of any ioctl.
    fn reset(&self) -> Result<(), XenError>;

    /// Makes a wait of `waiter` return, if one is under way. One that starts a moment later may
    /// miss it, so repeat until the waiter reacted.
    ///
    /// # Errors
    /// The thread cannot be signalled.
    fn interrupt(&self, waiter: &JoinHandle<()>) -> Result<(), XenError>;
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// So many ports fired.
    Fired(usize),
    /// More fired than the kernel kept: which ones is not known.
    Overflowed,
    /// Nothing fired; someone wants attention.
    Interrupted,
}

/// A page that Xen and this process share, mapped as long as this lives.
pub trait SharedPage: Send + Sync {
    /// Its memory.
    fn memory(&self) -> VolatileSlice<'_>;
}

/// Xen or the kernel refused.
#[derive(Debug)]
pub struct XenError {
    errno: Errno,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl XenError {
    /// An error of which no more is known than its number.
    pub fn new(errno: Errno) -> Self {
        Self { errno, source: None }
    }

    /// An error that can tell its own story.
    pub fn explained(errno: Errno, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { errno, source: Some(source.into()) }
    }

    /// Its number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Whether it says that the guest is gone, which is how each guest ends.
    pub fn guest_is_gone(&self) -> bool {
        matches!(self.errno, Errno::SRCH | Errno::NOTCONN)
    }
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => source.fmt(f),
            None => self.errno.fmt(f),
        }
    }
}

impl Error for XenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The message above is the source's own, so what comes next in the chain is its source.
        self.source.as_deref().and_then(|source| source.source())
    }
}

impl From<xen_ioctls::Error> for XenError {
    fn from(error: xen_ioctls::Error) -> Self {
        Self::explained(error.errno(), error)
    }
}
