//! A guest domain as Xen and its drivers have it.

use std::sync::Arc;

use testkit::driver::{GuestHal, MmioTransport, VcpuWindow};
use testkit::memory::FakeForeignMemory;
use testkit::xen::FakeXen;
use virtio_drivers::device::blk::VirtIOBlk;

pub const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 16 << 20;
/// What drivers may use; tests balloon out the rest.
pub const DRIVERS_BYTES: u64 = 8 << 20;
/// Where libxl puts a guest's first device.
pub const BASE_A: u64 = 0x0200_0000;
/// And its second.
pub const BASE_B: u64 = 0x0200_0200;

pub type DiskDriver = VirtIOBlk<GuestHal, MmioTransport<VcpuWindow>>;

/// A guest.
#[derive(Clone)]
pub struct Domain {
    pub xen: Arc<FakeXen>,
    pub memory: FakeForeignMemory,
}

impl Domain {
    pub fn new() -> Self {
        Self { xen: FakeXen::new(2), memory: FakeForeignMemory::new(&[(RAM, RAM_BYTES)]) }
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

    /// Whether Xen knows nothing of us any more.
    pub fn is_forgotten(&self) -> bool {
        self.xen.servers().is_empty() && self.memory.counts().live == 0
    }
}
