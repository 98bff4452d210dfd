//! Register accesses, from a slot of the shared page to the answer in it: the pump, the bus and the register file, with a
//! script in the place of Xen.
//!
//! The script is called where the pump would sleep on its event channels, and puts the next request into the slot. So the
//! pump never sleeps, and what is missing is what a system call costs, of which a real access has three.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use guest_memory::{AnonymousMapping, Budget, MapCache, Mapping};
use io_bus::{Bus, Claim, Space, Window};
use ioreq::{
    Buffering, EventChannels, GuestRam, Hypervisor, IoreqServer, LocalPort, MappedWindow, Pump, RemotePort, ServerId,
    SharedPage, Wake, XenError,
};
use rustix::io::Errno;
use testkit::device::{Behaviour, TestDevice};
use testkit::driver::{RawQueue, Register, Registers};
use testkit::memory::FakeForeignMemory;
use virtio_mmio::{InterruptLine, Transport};
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};
use xen_ioctls::abi::ioreq::{self as abi, Ioreq};

use super::{BATCH, Steps};

/// What the script's function is called, in a profile of the pump's thread.
pub(super) const SCRIPT: &str = "access::Script::next";

/// Guest addresses: of the registers, and of memory with its length.
const WINDOW: u64 = 0x0200_0000;
const WINDOW_BYTES: u64 = 0x200;
const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 0x10_0000;

/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
const VERSION_1: u64 = 1 << 32;

/// What the guest's one vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Notify,
}

/// A guest that makes the same access again and again. Fields drop in order: the pump before the window, that before the
/// server.
pub(super) struct Accesses {
    script: Arc<Script>,
    _pump: Pump,
    _window: MappedWindow,
    _claim: Claim,
    _server: Arc<IoreqServer>,
}

impl Accesses {
    pub(super) fn new(access: Access) -> Result<Self> {
        let script = Arc::new(Script::new(access)?);
        let server = IoreqServer::create(Arc::clone(&script) as Arc<dyn Hypervisor>, Buffering::Off)?;
        let window = Window::new(Space::Mmio, WINDOW, WINDOW_BYTES).context("A window of registers")?;
        let (mapped, bus) = (server.map(window)?, Bus::new());
        let claim = bus.claim(window, device()?)?;
        let events = Arc::clone(&script) as Arc<dyn EventChannels>;
        let pump = Pump::spawn(Arc::clone(&server), events, bus, Arc::new(NoRam))?;
        Ok(Self { script, _pump: pump, _window: mapped, _claim: claim, _server: server })
    }
}

/// A device in use, which has a queue with nothing in it.
fn device() -> Result<Arc<Transport>> {
    let memory = FakeForeignMemory::new(&[(RAM, RAM_BYTES)]);
    let cache = MapCache::new(memory.clone(), Budget::default());
    let device = Arc::new(TestDevice::new(Behaviour::Echo));
    let transport = Transport::new(device, Arc::new(NoLine), cache, "bench")?;
    transport.bring_up(VERSION_1, &RawQueue::new(memory, RAM, 16));
    Ok(transport)
}

impl Steps for Accesses {
    fn make(&mut self) {
        self.script.play(BATCH);
    }
}

/// Plays Xen: the control side, of which little is needed, the page, and the event channels.
struct Script {
    page: Arc<Page>,
    request: Ioreq,
    /// Accesses still to be made.
    left: AtomicU32,
    idle: Mutex<Idle>,
    changed: Condvar,
}

/// What the pump is to do when there is nothing to play.
#[derive(Default)]
struct Idle {
    is_done: bool,
    is_interrupted: bool,
}

impl Script {
    fn new(access: Access) -> Result<Self> {
        let (register, bits, data) = match access {
            Access::Read => (Register::InterruptStatus, abi::DIR_READ, 0),
            Access::Write => (Register::InterruptAck, 0, 1),
            Access::Notify => (Register::QueueNotify, 0, 0),
        };
        let addr = WINDOW + register as u64;
        let bits = bits | abi::STATE_IOREQ_READY;
        let request = Ioreq { addr, data, count: 1, size: 4, bits, type_: abi::TYPE_COPY, ..Ioreq::default() };
        let page = Arc::new(Page(AnonymousMapping::new(4096).context("Cannot make a page")?));
        let (left, idle, changed) = (AtomicU32::new(0), Mutex::default(), Condvar::new());
        Ok(Self { page, request, left, idle, changed })
    }

    /// Makes so many accesses, and waits until all are answered.
    fn play(&self, accesses: u32) {
        let mut idle = self.idle();
        idle.is_done = false;
        self.left.store(accesses, Release);
        self.changed.notify_all();
        drop(self.changed.wait_while(idle, |idle| !idle.is_done));
    }

    /// The next access, if there is one; else waits for more.
    #[inline(never)]
    fn next(&self) -> Wake {
        let left = self.left.load(Acquire);
        if left == 0 {
            return self.rest();
        }
        self.left.store(left - 1, Relaxed);
        self.put(self.request);
        Wake::Fired(1)
    }

    fn rest(&self) -> Wake {
        let mut idle = self.idle();
        idle.is_done = true;
        self.changed.notify_all();
        let is_idle = |idle: &mut Idle| self.left.load(Acquire) == 0 && !idle.is_interrupted;
        let mut idle = self.changed.wait_while(idle, is_idle).unwrap_or_else(PoisonError::into_inner);
        idle.is_interrupted = false;
        Wake::Interrupted
    }

    /// Puts a request into the slot of the one vCPU, its state last.
    fn put(&self, request: Ioreq) {
        let Ioreq { addr, data, count, size, bits, type_, .. } = request;
        self.store(offset_of!(Ioreq, addr), addr);
        self.store(offset_of!(Ioreq, data), data);
        self.store(offset_of!(Ioreq, count), count);
        self.store(offset_of!(Ioreq, size), size);
        self.store(offset_of!(Ioreq, type_), type_);
        self.store(offset_of!(Ioreq, bits), bits);
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        debug_assert!(at + size_of::<T>() <= size_of::<Ioreq>(), "a field of the slot");
        self.page.memory().store(value, at, Release).expect("a field of a page");
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Page(AnonymousMapping);

impl SharedPage for Page {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

impl EventChannels for Script {
    fn bind(&self, remote: RemotePort) -> Result<LocalPort, XenError> {
        Ok(LocalPort(remote.0))
    }

    fn wait(&self, fired: &mut [LocalPort]) -> Result<Wake, XenError> {
        let wake = self.next();
        if let Some(first) = fired.first_mut() {
            *first = LocalPort(0);
        }
        Ok(wake)
    }

    fn unmask(&self, _ports: &[LocalPort]) -> Result<(), XenError> {
        Ok(())
    }

    fn notify(&self, _port: LocalPort) -> Result<(), XenError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), XenError> {
        Ok(())
    }

    fn interrupt(&self, _waiter: &JoinHandle<()>) -> Result<(), XenError> {
        self.idle().is_interrupted = true;
        self.changed.notify_all();
        Ok(())
    }
}

impl Hypervisor for Script {
    fn vcpus(&self) -> Result<u32, XenError> {
        Ok(1)
    }

    fn create_server(&self, _buffering: Buffering) -> Result<ServerId, XenError> {
        Ok(ServerId(0))
    }

    fn destroy_server(&self, _server: ServerId) -> Result<(), XenError> {
        Ok(())
    }

    fn set_enabled(&self, _server: ServerId, enabled: bool) -> Result<(), XenError> {
        // The vCPU has picked its last answer up.
        if !enabled {
            self.store(offset_of!(Ioreq, bits), abi::STATE_IOREQ_NONE);
        }
        Ok(())
    }

    fn map_window(&self, _server: ServerId, _window: Window) -> Result<(), XenError> {
        Ok(())
    }

    fn unmap_window(&self, _server: ServerId, _window: Window) -> Result<(), XenError> {
        Ok(())
    }

    fn ioreq_page(&self, _server: ServerId) -> Result<Arc<dyn SharedPage>, XenError> {
        Ok(Arc::clone(&self.page) as Arc<dyn SharedPage>)
    }

    fn buffered_page(&self, _server: ServerId) -> Result<(Arc<dyn SharedPage>, RemotePort), XenError> {
        Err(XenError::new(Errno::INVAL))
    }

    fn set_irq_level(&self, _irq: u32, _high: bool) -> Result<(), XenError> {
        Ok(())
    }

    fn tie_irq(&self, _irq: u32, _event: BorrowedFd<'_>) -> Result<Box<dyn Send + Sync>, XenError> {
        Err(XenError::new(Errno::NOTTY))
    }
}

/// An interrupt line that leads nowhere.
struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest without string instructions to memory.
struct NoRam;

impl GuestRam for NoRam {
    fn invalidate(&self) {}
}
