//! An IOREQ server of a guest, and the windows it has, as owned things.
//!
//! Xen keeps a server until it is destroyed or the guest ends; it outlives a process that is killed,
//! and [`IoreqServer::attach`] finds it again. Destroying it under a vCPU that waits for an answer
//! blocks that vCPU for ever, so here that cannot be done: a server with a slot in use is left where
//! it is, and reported.
//!
//! Order of a server's life: [`create`](IoreqServer::create), [`map`](IoreqServer::map) windows,
//! [`Pump::spawn`](crate::Pump::spawn) (which enables it), more or fewer windows at any time,
//! [`Pump::stop`](crate::Pump::stop) (which disables it), [`close`](IoreqServer::close). For the process that
//! follows one that died it begins with [`attach`](IoreqServer::attach), and all windows are mapped before the pump
//! is: the guest runs, and a request may wait in any of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use io_bus::Window;
use rustix::io::Errno;

use crate::buffered::BufferedRing;
use crate::page::{IoreqPage, PageError, SLOTS, SlotIndex};
use crate::xen::{Buffering, Hypervisor, RemotePort, ServerId, XenError};

/// How long an answered vCPU may take to pick its answer up before the server is destroyed. It needs
/// microseconds unless the host is overloaded or the guest is paused.
const PATIENCE: Duration = Duration::from_secs(1);

/// An IOREQ server. Dropping it [`close`](Self::close)s it.
pub struct IoreqServer {
    hypervisor: Arc<dyn Hypervisor>,
    id: ServerId,
    vcpus: u32,
    page: Arc<IoreqPage>,
    buffered: Option<(BufferedRing, RemotePort)>,
    /// Whether a former process made it, for a guest that runs.
    attached: bool,
    /// Whether Xen's side is none of our business any more: destroyed, or another's.
    released: AtomicBool,
}

/// A window whose accesses come to a server. Dropping it takes the window back.
pub struct MappedWindow {
    server: Arc<IoreqServer>,
    window: Window,
}

/// Why there is no server, or no window.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Xen refused.
    #[error("Cannot {doing}")]
    Xen {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: XenError,
    },
    /// More than one page of slots would be needed.
    #[error("The guest has {0} vCPUs; at most {SLOTS} can be served: lower `maxvcpus` in its configuration")]
    TooManyVcpus(u32),
    /// The mapping is unusable.
    #[error("Cannot use the page shared with Xen")]
    Page(#[from] PageError),
}

/// Why a server still exists.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// Destroying it would block these vCPUs for ever. Xen destroys it with the guest.
    #[error("IOREQ server {} is left in place: vCPUs {vcpus:?} have a request in it", server.0)]
    InUse {
        /// Which server.
        server: ServerId,
        /// Whose slots are not free.
        vcpus: Vec<u8>,
    },
    /// Xen refused.
    #[error("Cannot destroy the IOREQ server")]
    Xen(#[source] XenError),
}

impl IoreqServer {
    /// Makes a server for the guest: not enabled, without windows.
    ///
    /// # Errors
    /// Xen refuses, or the guest has more than 128 vCPUs. Nothing stays behind.
    pub fn create(hypervisor: Arc<dyn Hypervisor>, buffering: Buffering) -> Result<Arc<Self>, ServerError> {
        // Before there is anything to undo.
        let vcpus = count_vcpus(hypervisor.as_ref())?;
        let id = hypervisor.create_server(buffering).map_err(refused("create an IOREQ server"))?;
        Self::open(Arc::clone(&hypervisor), id, vcpus, buffering, false).inspect_err(|_| {
            // It was never enabled, so nobody waits for it.
            if let Err(error) = hypervisor.destroy_server(id) {
                tracing::warn!(name: "ioreq.server_leaked", server = id.0, %error, "An IOREQ server is left behind");
            }
        })
    }

    /// Takes over a server that another process of this domain made and did not destroy. The windows that are mapped
    /// stay so; [`map`](Self::map) them all the same, to own them. Until a pump serves it, it stays
    /// [released](Self::release): should that fail, it is as it was for the next who tries.
    ///
    /// # Errors
    /// There is no such server, or it cannot be mapped. It stays as it was.
    pub fn attach(
        hypervisor: Arc<dyn Hypervisor>,
        id: ServerId,
        buffering: Buffering,
    ) -> Result<Arc<Self>, ServerError> {
        let vcpus = count_vcpus(hypervisor.as_ref())?;
        Self::open(hypervisor, id, vcpus, buffering, true)
    }

    fn open(
        hypervisor: Arc<dyn Hypervisor>,
        id: ServerId,
        vcpus: u32,
        buffering: Buffering,
        attached: bool,
    ) -> Result<Arc<Self>, ServerError> {
        let page = hypervisor.ioreq_page(id).map_err(refused("map the ioreq page"))?;
        let page = Arc::new(IoreqPage::new(page)?);
        let buffered = match buffering {
            Buffering::Off => None,
            Buffering::On => {
                let (ring, port) = hypervisor.buffered_page(id).map_err(refused("map the page of buffered writes"))?;
                Some((BufferedRing::new(ring)?, port))
            }
        };
        Ok(Arc::new(Self { hypervisor, id, vcpus, page, buffered, attached, released: AtomicBool::new(attached) }))
    }

    /// Its number, by which another process can [`attach`](Self::attach) to it.
    pub fn id(&self) -> ServerId {
        self.id
    }

    /// Has the guest's accesses in `window` come here. One that a former process of this server had mapped is this
    /// process's from now on.
    ///
    /// # Errors
    /// The window overlaps one of this server's, it has 256 already, or the guest is gone.
    pub fn map(self: &Arc<Self>, window: Window) -> Result<MappedWindow, ServerError> {
        match self.hypervisor.map_window(self.id, window) {
            // The former process had come so far; which windows those are, Xen does not tell.
            Err(error) if self.attached && error.errno() == Errno::EXIST => {}
            mapped => mapped.map_err(refused("map a window to the IOREQ server"))?,
        }
        Ok(MappedWindow { server: Arc::clone(self), window })
    }

    /// The vCPUs that have a request or an answer in their slot.
    pub fn busy_vcpus(&self) -> Vec<u8> {
        self.slots().filter(|slot| !self.page.is_free(*slot)).map(SlotIndex::vcpu).collect()
    }

    /// Destroys the server, as soon as no vCPU uses it; waits up to a second for those that were just answered.
    ///
    /// # Errors
    /// Some vCPU still uses it: its request waits for a device, or the guest is paused. The server
    /// stays, disabled; try again, or leave it to the guest's end.
    pub fn close(&self) -> Result<(), CloseError> {
        if self.is_released() {
            return Ok(());
        }
        // No request comes from here on, so a slot that is free stays free.
        match self.set_enabled(false).map_err(CloseError::Xen).and_then(|()| self.destroy_when_free()) {
            // The guest took the server with it.
            Err(CloseError::Xen(error)) if error.guest_is_gone() => {}
            result => result?,
        }
        self.release();
        Ok(())
    }

    /// From now on leaves Xen's side alone, for another process to [`attach`](Self::attach) to: windows stay
    /// mapped, the server stays enabled and is not destroyed.
    pub fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    /// It is served here from now on, and so closed here when that ends.
    pub(crate) fn take_over(&self) {
        self.released.store(false, Ordering::Release);
    }

    fn destroy_when_free(&self) -> Result<(), CloseError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let vcpus = self.busy_vcpus();
            if vcpus.is_empty() {
                return self.hypervisor.destroy_server(self.id).map_err(CloseError::Xen);
            }
            if Instant::now() >= end {
                return Err(CloseError::InUse { server: self.id, vcpus });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Requests come, or no more of them; those in the slots stay.
    pub(crate) fn set_enabled(&self, enabled: bool) -> Result<(), XenError> {
        self.hypervisor.set_enabled(self.id, enabled)
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    pub(crate) fn page(&self) -> &Arc<IoreqPage> {
        &self.page
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = SlotIndex> {
        SlotIndex::first(self.vcpus)
    }

    pub(crate) fn buffered(&self) -> Option<&(BufferedRing, RemotePort)> {
        self.buffered.as_ref()
    }
}

impl Drop for IoreqServer {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(name: "ioreq.server_left", server = self.id.0, %error, "An IOREQ server was not destroyed");
        }
    }
}

impl MappedWindow {
    /// Where it is.
    pub fn window(&self) -> Window {
        self.window
    }
}

impl Drop for MappedWindow {
    fn drop(&mut self) {
        let server = &self.server;
        if server.is_released() {
            return;
        }
        match server.hypervisor.unmap_window(server.id, self.window) {
            Err(error) if !error.guest_is_gone() => {
                tracing::warn!(name: "ioreq.window_left", window = %self.window, %error, "A window was not unmapped");
            }
            _ => {}
        }
    }
}

/// As many as need slots, if they fit the page.
fn count_vcpus(hypervisor: &dyn Hypervisor) -> Result<u32, ServerError> {
    let vcpus = hypervisor.vcpus().map_err(refused("learn how many vCPUs the guest has"))?;
    if vcpus > SLOTS { Err(ServerError::TooManyVcpus(vcpus)) } else { Ok(vcpus) }
}

fn refused(doing: &'static str) -> impl FnOnce(XenError) -> ServerError {
    move |source| ServerError::Xen { doing, source }
}
