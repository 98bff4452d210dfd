//! A guest, a server with one window, a device in it, and a pump.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use io_bus::{Bus, Claim, Completer, Device, Space, Window, Written, defer};
use ioreq::{Buffering, GuestRam, IoreqServer, MappedWindow, NoRam, Pump};
use testkit::xen::{FakeChannels, FakeXen, Vcpu};

pub(crate) const BASE: u64 = 0x0200_0000;
pub(crate) const LEN: u64 = 0x200;
/// A read or write here panics.
pub(crate) const PANICS: u64 = BASE + 0x40;
/// A write here is answered when the test says so.
pub(crate) const DEFERS: u64 = BASE + 0x80;

/// Memory, in which two registers do something else.
#[derive(Default)]
pub(crate) struct Registers {
    bytes: Mutex<BTreeMap<u64, u8>>,
    deferred: Mutex<Vec<Completer>>,
    pub(crate) accesses: AtomicU64,
}

impl Device for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        assert_ne!(BASE + offset, PANICS, "a device's mistake");
        let bytes = self.bytes.lock().unwrap();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = bytes.get(&at).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Written {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        assert_ne!(BASE + offset, PANICS, "a device's mistake");
        if BASE + offset == DEFERS {
            let (completer, deferral) = defer();
            self.deferred.lock().unwrap().push(completer);
            return Written::Later(deferral);
        }
        self.bytes.lock().unwrap().extend((offset..).zip(data.iter().copied()));
        Written::Now
    }
}

impl Registers {
    /// Waits until `count` writes are deferred, and takes what completes them.
    pub(crate) fn take_deferred(&self, count: usize) -> Vec<Completer> {
        eventually("writes are deferred", || self.deferred.lock().unwrap().len() >= count);
        std::mem::take(&mut *self.deferred.lock().unwrap())
    }
}

/// Guest memory of one page at 0x4000_0000, which counts invalidations.
#[derive(Default)]
pub(crate) struct Ram {
    pub(crate) invalidations: AtomicU64,
    bytes: Mutex<BTreeMap<u64, u8>>,
}

const RAM: std::ops::Range<u64> = 0x4000_0000..0x4000_1000;

/// Addresses from this one on; after the last comes the first.
fn from(gpa: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |offset| gpa.wrapping_add(offset))
}

impl GuestRam for Ram {
    fn invalidate(&self) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), NoRam> {
        for (byte, at) in data.iter_mut().zip(from(gpa)) {
            let bytes = self.bytes.lock().unwrap();
            *byte = RAM.contains(&at).then(|| bytes.get(&at).copied().unwrap_or(0)).ok_or(NoRam(at))?;
        }
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), NoRam> {
        for (byte, at) in data.iter().zip(from(gpa)) {
            RAM.contains(&at).then(|| self.bytes.lock().unwrap().insert(at, *byte)).ok_or(NoRam(at))?;
        }
        Ok(())
    }
}

/// All of it. Fields drop in order: the pump before the window, that before the server.
pub(crate) struct Machine {
    pub(crate) pump: Pump,
    pub(crate) channels: Arc<FakeChannels>,
    pub(crate) window: MappedWindow,
    pub(crate) claim: Claim,
    pub(crate) server: Arc<IoreqServer>,
    pub(crate) device: Arc<Registers>,
    pub(crate) ram: Arc<Ram>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) xen: Arc<FakeXen>,
}

impl Machine {
    /// A running one with so many vCPUs.
    pub(crate) fn new(vcpus: u32) -> Self {
        Self::on(FakeXen::new(vcpus), Buffering::Off)
    }

    pub(crate) fn on(xen: Arc<FakeXen>, buffering: Buffering) -> Self {
        let server = IoreqServer::create(xen.hypervisor(), buffering).unwrap();
        let window = server.map(window(BASE)).unwrap();
        Self::serve(xen, server, window)
    }

    /// As another process that knows the server's number.
    pub(crate) fn attach(xen: Arc<FakeXen>, id: ioreq::ServerId) -> Self {
        let server = IoreqServer::attach(xen.hypervisor(), id, Buffering::Off).unwrap();
        let window = server.map(window(BASE)).unwrap();
        Self::serve(xen, server, window)
    }

    fn serve(xen: Arc<FakeXen>, server: Arc<IoreqServer>, mapped: MappedWindow) -> Self {
        let (bus, device, ram) = (Bus::new(), Arc::<Registers>::default(), Arc::<Ram>::default());
        let claim = bus.claim(window(BASE), Arc::clone(&device) as Arc<dyn Device>).unwrap();
        let channels = xen.channels();
        let pump =
            Pump::spawn(Arc::clone(&server), Arc::clone(&channels) as _, Arc::clone(&bus), Arc::clone(&ram) as _)
                .unwrap();
        Self { pump, channels, window: mapped, claim, server, device, ram, bus, xen }
    }

    pub(crate) fn vcpu(&self, index: usize) -> Vcpu {
        self.xen.vcpu(index)
    }

    /// Writes a register from a thread of its own, for accesses that take long.
    pub(crate) fn write_from(&self, vcpu: usize, addr: u64, value: u32) -> JoinHandle<()> {
        let vcpu = self.vcpu(vcpu);
        thread::spawn(move || vcpu.write32(addr, value))
    }

    /// Ends as a killed process does: Xen keeps the server, only our side goes.
    pub(crate) fn die(self) {
        self.server.release();
        let channels = Arc::clone(&self.channels);
        drop(self);
        channels.close();
    }
}

pub(crate) fn window(start: u64) -> Window {
    Window::new(Space::Mmio, start, LEN).unwrap()
}

/// Waits for what another thread does.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
