//! A guest domain as Xen and its drivers have it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use guest_memory::Sources;
use testkit::driver::{GuestHal, MmioTransport, VcpuWindow, Way};
use testkit::memory::FakeForeignMemory;
use testkit::xen::FakeXen;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::socket::{VirtIOSocket, VsockConnectionManager};
use xen_virtio::model::Grants;
use xen_virtio::worker::GuestPages;

pub const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 16 << 20;
/// What drivers may use; tests balloon out the rest.
pub const DRIVERS_BYTES: u64 = 8 << 20;
/// Where libxl puts a guest's first device.
pub const BASE_A: u64 = 0x0200_0000;
/// And its second.
pub const BASE_B: u64 = 0x0200_0200;

pub type DiskDriver = VirtIOBlk<GuestHal, MmioTransport<VcpuWindow>>;
pub type SocketDriver = VsockConnectionManager<GuestHal, MmioTransport<VcpuWindow>, RX_BUFFER>;

/// Bytes of a socket device's receive buffers.
const RX_BUFFER: usize = 4096;

/// A guest.
#[derive(Clone)]
pub struct Domain {
    pub xen: Arc<FakeXen>,
    pub memory: FakeForeignMemory,
    /// What a device reaches that uses grants, once the guest has booted so.
    granted: Arc<Mutex<Option<Sources>>>,
}

impl Domain {
    pub fn new() -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_BYTES)]);
        Self { xen: FakeXen::new(2), memory, granted: Arc::default() }
    }

    /// Makes the calling thread the guest, whose drivers name memory by grants.
    pub fn boot_with_grants(&self) {
        let sources = GuestHal::boot_by(Way::Grants, self.memory.clone(), RAM, RAM + DRIVERS_BYTES);
        *self.granted.lock().unwrap() = Some(sources);
    }

    /// Runs `program` in the guest.
    pub fn run<T>(&self, program: impl FnOnce(&Self) -> T) -> T {
        GuestHal::boot(self.memory.clone(), RAM, RAM + DRIVERS_BYTES);
        program(self)
    }

    /// Probes the disk whose registers are at `base`.
    pub fn disk(&self, base: u64) -> DiskDriver {
        VirtIOBlk::new(MmioTransport(VcpuWindow { vcpu: self.xen.vcpu(0), base })).unwrap()
    }

    /// Probes the socket device whose registers are at `base`.
    pub fn sockets(&self, base: u64) -> SocketDriver {
        let transport = MmioTransport(VcpuWindow { vcpu: self.xen.vcpu(0), base });
        SocketDriver::new(VirtIOSocket::new(transport).unwrap())
    }

    /// Whether Xen knows nothing of us any more.
    pub fn is_forgotten(&self) -> bool {
        self.xen.servers().is_empty() && self.memory.counts().live == 0
    }
}

impl GuestPages for Domain {
    fn sources(&self, grants: Grants, gntdev: Option<OwnedFd>) -> anyhow::Result<Sources> {
        assert_eq!(gntdev.is_some(), grants != Grants::Never);
        match grants {
            Grants::Never => Ok(self.memory.clone().into()),
            Grants::Allowed | Grants::Only => self.granted.lock().unwrap().take().context("The guest grants nothing"),
        }
    }
}
