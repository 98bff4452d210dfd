//! dm_op and the mapping of resources, as one open /dev/xen/privcmd gives them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use io_bus::{Space, Window};
use ioreq::{Buffering, Hypervisor, RemotePort, ServerId, SharedPage, XenError};
use rustix::io::Errno;

use super::page::{BufferedPage, STATE_NONE, SlotPage};
use super::{Buffered, FakeXen, Server, Slot, State};

/// `MAX_NR_IOREQ_SERVERS`
const MAX_SERVERS: usize = 8;
/// `MAX_NR_IO_RANGES`
const MAX_WINDOWS: usize = 256;

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmOp {
    /// `nr_vcpus`
    Vcpus,
    /// `create_ioreq_server`
    CreateServer,
    /// `destroy_ioreq_server`
    DestroyServer,
    /// `set_ioreq_server_state`
    SetEnabled,
    /// `map_io_range_to_ioreq_server`
    MapWindow,
    /// `unmap_io_range_from_ioreq_server`
    UnmapWindow,
    /// `XENMEM_acquire_resource`
    MapPage,
    /// `set_irq_level`
    SetIrqLevel,
}

/// The control side of a [`FakeXen`].
pub struct FakeHypervisor {
    xen: Arc<FakeXen>,
}

impl FakeHypervisor {
    pub(super) fn new(xen: Arc<FakeXen>) -> Self {
        Self { xen }
    }

    fn call<T>(&self, op: DmOp, body: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, XenError> {
        let mut state = self.xen.lock();
        let injected = state.failures.iter().position(|(which, _)| *which == op);
        let result = match injected.and_then(|at| state.failures.remove(at)) {
            Some((_, errno)) => Err(errno),
            None if state.dying => Err(Errno::SRCH),
            None => body(&mut state),
        };
        drop(state);
        self.xen.to_guest.notify_all();
        result.map_err(XenError::new)
    }

    fn on_server<T>(
        &self,
        op: DmOp,
        server: ServerId,
        body: impl FnOnce(&mut Server) -> Result<T, Errno>,
    ) -> Result<T, XenError> {
        self.call(op, |state| body(state.servers.get_mut(&server).ok_or(Errno::NOENT)?))
    }
}

impl Hypervisor for FakeHypervisor {
    fn vcpus(&self) -> Result<u32, XenError> {
        let vcpus = u32::try_from(self.xen.vcpus.len()).expect("few");
        self.call(DmOp::Vcpus, |_| Ok(vcpus))
    }

    fn create_server(&self, buffering: Buffering) -> Result<ServerId, XenError> {
        let vcpus = self.xen.vcpus.len();
        self.call(DmOp::CreateServer, |state| {
            let free = (0..MAX_SERVERS).find_map(|id| {
                let id = ServerId(u16::try_from(id).expect("below 8"));
                (!state.servers.contains_key(&id)).then_some(id)
            });
            let id = free.ok_or(Errno::NOSPC)?;
            let slots = (0..vcpus).map(|_| Slot { port: state.new_channel(), pending: false }).collect();
            let buffered = (buffering == Buffering::On)
                .then(|| Buffered { page: Arc::new(BufferedPage::new()), port: state.new_channel() });
            let page = Arc::new(SlotPage::new());
            state.servers.insert(id, Server { enabled: false, windows: Vec::new(), page, slots, buffered });
            Ok(id)
        })
    }

    fn destroy_server(&self, server: ServerId) -> Result<(), XenError> {
        self.call(DmOp::DestroyServer, |state| {
            let gone = state.servers.remove(&server).ok_or(Errno::NOENT)?;
            for (vcpu, slot) in gone.slots.iter().enumerate() {
                state.channels.remove(&slot.port);
                if slot.pending || gone.page.state(vcpu) != STATE_NONE {
                    state.violation(format!("{server:?} destroyed while vCPU {vcpu} waits for it"));
                }
            }
            Ok(())
        })
    }

    fn set_enabled(&self, server: ServerId, enabled: bool) -> Result<(), XenError> {
        self.on_server(DmOp::SetEnabled, server, |server| {
            server.enabled = enabled;
            // ioreq_server_enable: only now does the page say where to signal.
            for (vcpu, slot) in server.slots.iter().enumerate().filter(|_| enabled) {
                server.page.set_port(vcpu, slot.port);
            }
            Ok(())
        })
    }

    fn map_window(&self, server: ServerId, window: Window) -> Result<(), XenError> {
        self.on_server(DmOp::MapWindow, server, |server| {
            if server.windows.iter().any(|taken| overlap(taken, &window)) {
                return Err(Errno::EXIST);
            }
            if server.windows.len() >= MAX_WINDOWS {
                return Err(Errno::NOSPC);
            }
            server.windows.push(window);
            Ok(())
        })
    }

    fn unmap_window(&self, server: ServerId, window: Window) -> Result<(), XenError> {
        self.on_server(DmOp::UnmapWindow, server, |server| {
            let at = server.windows.iter().position(|mapped| *mapped == window).ok_or(Errno::NOENT)?;
            server.windows.remove(at);
            Ok(())
        })
    }

    fn ioreq_page(&self, server: ServerId) -> Result<Arc<dyn SharedPage>, XenError> {
        self.on_server(DmOp::MapPage, server, |server| Ok(Arc::clone(&server.page) as Arc<dyn SharedPage>))
    }

    fn buffered_page(&self, server: ServerId) -> Result<(Arc<dyn SharedPage>, RemotePort), XenError> {
        self.on_server(DmOp::MapPage, server, |server| {
            let buffered = server.buffered.as_ref().ok_or(Errno::NOENT)?;
            Ok((Arc::clone(&buffered.page) as Arc<dyn SharedPage>, RemotePort(buffered.port)))
        })
    }

    fn set_irq_level(&self, irq: u32, high: bool) -> Result<(), XenError> {
        self.call(DmOp::SetIrqLevel, |state| {
            // Below 32 are interrupts of one vCPU, which a device model cannot set (arm/dm.c).
            if irq < 32 {
                return Err(Errno::INVAL);
            }
            *state.irqs.entry(irq).or_default() += u64::from(high);
            Ok(())
        })
    }

    /// As a kernel without XEN_PRIVCMD_EVENTFD.
    fn tie_irq(&self, _irq: u32, _event: BorrowedFd<'_>) -> Result<Box<dyn Send + Sync>, XenError> {
        Err(XenError::new(Errno::NOTTY))
    }
}

/// Whether Xen would take two windows for one range set.
fn overlap(a: &Window, b: &Window) -> bool {
    a.space() == b.space() && a.first() <= b.last() && b.first() <= a.last()
}

impl Server {
    /// Whether all of an access lies in a window of this server.
    pub(super) fn claims(&self, space: Space, addr: u64, size: u32) -> bool {
        let Some(last) = addr.checked_add(u64::from(size).saturating_sub(1)) else { return false };
        let holds = |window: &Window| window.space() == space && window.first() <= addr && last <= window.last();
        self.enabled && self.windows.iter().any(holds)
    }
}
