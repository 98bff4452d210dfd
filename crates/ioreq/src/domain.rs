//! The real thing: one guest domain, through the kernel's devices.
//!
//! The traits of `xen.rs` over the owners of `xen-ioctls`. The descriptors may be restricted to the
//! domain before they come here; nothing below needs more.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use io_bus::{Space, Window};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use smallvec::SmallVec;
use vm_memory::VolatileSlice;
use xen_ioctls::{BoundPort, DeviceModel, DomId, Fired, IrqFd, Port, ResourceMapping};

use crate::interrupt;
use crate::pump::MAX_PORTS;
use crate::xen::{Buffering, EventChannels, Hypervisor, LocalPort, RemotePort, ServerId, SharedPage, Wake, XenError};

/// The control side of a guest, through `/dev/xen/privcmd`.
pub struct GuestDomain {
    model: DeviceModel,
}

/// The event channels of a guest, through a `/dev/xen/evtchn` of their own.
pub struct GuestChannels {
    channels: Arc<xen_ioctls::EventChannels>,
    domain: DomId,
    bound: Mutex<Vec<BoundPort>>,
}

impl GuestDomain {
    /// The guest that `model` speaks of.
    pub fn new(model: DeviceModel) -> Self {
        Self { model }
    }
}

impl Hypervisor for GuestDomain {
    fn vcpus(&self) -> Result<u32, XenError> {
        Ok(self.model.nr_vcpus()?)
    }

    fn create_server(&self, buffering: Buffering) -> Result<ServerId, XenError> {
        Ok(ServerId(self.model.create_ioreq_server(buffering == Buffering::On)?.0))
    }

    fn destroy_server(&self, server: ServerId) -> Result<(), XenError> {
        Ok(self.model.destroy_ioreq_server(id(server))?)
    }

    fn set_enabled(&self, server: ServerId, enabled: bool) -> Result<(), XenError> {
        Ok(self.model.set_ioreq_server_state(id(server), enabled)?)
    }

    fn map_window(&self, server: ServerId, window: Window) -> Result<(), XenError> {
        let (space, first, last) = as_range(window);
        Ok(self.model.map_io_range(id(server), space, first..=last)?)
    }

    fn unmap_window(&self, server: ServerId, window: Window) -> Result<(), XenError> {
        let (space, first, last) = as_range(window);
        Ok(self.model.unmap_io_range(id(server), space, first..=last)?)
    }

    fn ioreq_page(&self, server: ServerId) -> Result<Arc<dyn SharedPage>, XenError> {
        let page = ResourceMapping::ioreq_page(self.model.privcmd(), self.model.domain(), id(server))?;
        Ok(Arc::new(page))
    }

    fn buffered_page(&self, server: ServerId) -> Result<(Arc<dyn SharedPage>, RemotePort), XenError> {
        let page = ResourceMapping::buffered_page(self.model.privcmd(), self.model.domain(), id(server))?;
        let info = self.model.get_ioreq_server_info(id(server), false)?;
        Ok((Arc::new(page), RemotePort(info.bufioreq_port.0)))
    }

    fn set_irq_level(&self, irq: u32, high: bool) -> Result<(), XenError> {
        Ok(self.model.set_irq_level(irq, high)?)
    }

    fn tie_irq(&self, irq: u32, event: BorrowedFd<'_>) -> Result<Box<dyn Send + Sync>, XenError> {
        Ok(Box::new(IrqFd::new(&self.model, irq, event)?))
    }
}

impl SharedPage for ResourceMapping {
    fn memory(&self) -> VolatileSlice<'_> {
        ResourceMapping::memory(self)
    }
}

fn id(server: ServerId) -> xen_ioctls::ServerId {
    xen_ioctls::ServerId(server.0)
}

/// A window as Xen counts: it knows PCI functions only, not the registers in them.
fn as_range(window: Window) -> (xen_ioctls::Space, u64, u64) {
    let (first, last) = (window.first(), window.last());
    match window.space() {
        Space::Mmio => (xen_ioctls::Space::Memory, first, last),
        Space::PortIo => (xen_ioctls::Space::Port, first, last),
        Space::PciConfig => (xen_ioctls::Space::Pci, first >> 32, last >> 32),
    }
}

impl GuestChannels {
    /// Channels with `domain`. From now on, in this process, the first real-time signal interrupts
    /// the thread it is sent to.
    ///
    /// # Errors
    /// The descriptor cannot be made to block, or the signal cannot be had.
    pub fn new(channels: xen_ioctls::EventChannels, domain: DomId) -> Result<Self, XenError> {
        interrupt::prepare().map_err(XenError::new)?;
        // A read that returns empty-handed would make the pump spin.
        fcntl_getfl(&channels)
            .and_then(|flags| fcntl_setfl(&channels, flags.difference(OFlags::NONBLOCK)))
            .map_err(XenError::new)?;
        Ok(Self { channels: Arc::new(channels), domain, bound: Mutex::default() })
    }
}

impl EventChannels for GuestChannels {
    fn bind(&self, remote: RemotePort) -> Result<LocalPort, XenError> {
        let bound = self.channels.bind_interdomain(self.domain, Port(remote.0))?;
        let port = LocalPort(bound.port().0);
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).push(bound);
        Ok(port)
    }

    fn wait(&self, fired: &mut [LocalPort]) -> Result<Wake, XenError> {
        let mut ports = [Port(0); MAX_PORTS];
        let (room, _) = ports.split_at_mut(fired.len().min(MAX_PORTS));
        Ok(match self.channels.wait(room)? {
            Fired::Ports(count) => {
                fired.iter_mut().zip(room).for_each(|(fired, port)| *fired = LocalPort(port.0));
                Wake::Fired(count)
            }
            Fired::Overflowed => Wake::Overflowed,
            Fired::Interrupted => Wake::Interrupted,
            // Somebody has made the descriptor nonblocking again.
            Fired::Nothing => return Err(XenError::new(Errno::AGAIN)),
        })
    }

    fn unmask(&self, ports: &[LocalPort]) -> Result<(), XenError> {
        // Seldom more than a few at a time.
        let ports: SmallVec<[Port; 8]> = ports.iter().map(|port| Port(port.0)).collect();
        Ok(self.channels.unmask(&ports)?)
    }

    fn notify(&self, port: LocalPort) -> Result<(), XenError> {
        Ok(self.channels.notify(Port(port.0))?)
    }

    fn reset(&self) -> Result<(), XenError> {
        Ok(self.channels.reset()?)
    }

    fn interrupt(&self, waiter: &JoinHandle<()>) -> Result<(), XenError> {
        interrupt::interrupt(waiter).map_err(XenError::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::thread;
    use std::time::Duration;
    use xen_ioctls::Privcmd;

    /// Channels whose node is one end of a socket pair, nonblocking, and the other end.
    fn channels() -> (Arc<GuestChannels>, OwnedFd) {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        let domain = DomId::new(7).unwrap();
        (Arc::new(GuestChannels::new(ours.into(), domain).unwrap()), theirs)
    }

    #[test]
    fn a_wait_blocks_until_a_port_fires_though_the_descriptor_came_nonblocking() {
        let (channels, node) = channels();
        let waiter = thread::spawn(move || {
            let mut fired = [LocalPort(0); 4];
            (channels.wait(&mut fired).unwrap(), fired[0])
        });
        rustix::io::write(&node, &9_u32.to_ne_bytes()).unwrap();
        assert_eq!(waiter.join().unwrap(), (Wake::Fired(1), LocalPort(9)));
    }

    #[test]
    fn a_wait_can_be_interrupted_again_and_again() {
        let (channels, _node) = channels();
        let waiter = thread::spawn({
            let channels = Arc::clone(&channels);
            move || {
                for _ in 0..3 {
                    assert_eq!(channels.wait(&mut [LocalPort(0); 4]).unwrap(), Wake::Interrupted);
                }
            }
        });
        while !waiter.is_finished() {
            channels.interrupt(&waiter).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        waiter.join().unwrap();
    }

    #[test]
    fn an_error_keeps_its_number_and_its_words() {
        let not_privcmd = Privcmd::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        let guest = GuestDomain::new(DeviceModel::new(Arc::new(not_privcmd), DomId::new(7).unwrap()));
        let error = guest.create_server(Buffering::Off).err().unwrap();
        assert_eq!(error.errno(), Errno::NOTTY);
        assert!(error.to_string().contains("domain 7"), "{error}");
    }

    #[test]
    fn a_pci_window_is_mapped_by_function() {
        let function = Window::new(Space::PciConfig, 0x18 << 32, 0x1000).unwrap();
        assert_eq!(as_range(function), (xen_ioctls::Space::Pci, 0x18, 0x18));
    }
}
