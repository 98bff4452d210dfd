//! A device under test: its register file, its guest's memory, its interrupt line, and behind it a device that does as
//! a test says.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod granting;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use guest_memory::{Budget, MapCache};
use io_bus::{Deferral, Device, Written};
use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::{Descriptor, RawQueue, Register, Registers};
use testkit::memory::FakeForeignMemory;
use testkit::record::left_behind;
use virtio_backend::{Record, Signals};
use virtio_mmio::{InterruptLine, Transport};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_LEN: u64 = 0x10_0000;
/// Where tests put buffers: behind the queues.
pub const BUFFERS: u64 = RAM + 0x8_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const RING_RESET: u64 = 1 << 40;

/// Counts interrupts.
#[derive(Default)]
pub struct Line {
    raised: AtomicU64,
    pub is_broken: AtomicBool,
}

impl InterruptLine for Line {
    fn raise(&self) -> io::Result<()> {
        self.raised.fetch_add(1, SeqCst);
        if self.is_broken.load(SeqCst) { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) }
    }
}

impl Line {
    pub fn raised(&self) -> u64 {
        self.raised.load(SeqCst)
    }
}

pub struct Rig {
    pub device: Arc<TestDevice>,
    pub registers: Arc<Transport>,
    pub line: Arc<Line>,
    pub memory: FakeForeignMemory,
    pub cache: Arc<MapCache>,
    pub record: Record,
}

impl Rig {
    /// A device just plugged in.
    pub fn new(behaviour: Behaviour) -> Self {
        Self::with(TestDevice::new(behaviour))
    }

    pub fn with(device: TestDevice) -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let cache = MapCache::new(memory.clone(), Budget::default());
        Self::behind(device, memory, cache)
    }

    /// A device just plugged in that reaches a guest's memory by `cache`.
    pub fn behind(device: TestDevice, memory: FakeForeignMemory, cache: Arc<MapCache>) -> Self {
        Self::over(device, memory, cache, Record::new().unwrap())
    }

    /// A device that goes on with what is in `record`.
    pub fn over(device: TestDevice, memory: FakeForeignMemory, cache: Arc<MapCache>, record: Record) -> Self {
        let (device, line) = (Arc::new(device), Arc::<Line>::default());
        let registers =
            Transport::recorded(device.clone(), line.clone(), cache.clone(), "test", record.clone()).unwrap();
        Self { device, registers, line, memory, cache, record }
    }

    /// The device as another process goes on with it if this one is killed now. What this one does later, its end
    /// included, changes neither record nor registers of the other; what it still holds must not be given back.
    pub fn followed(&self, behaviour: Behaviour) -> Self {
        self.followed_over(behaviour, left_behind(&self.record))
    }

    /// The same, with another record than was left.
    pub fn followed_over(&self, behaviour: Behaviour, record: Record) -> Self {
        let cache = MapCache::new(self.memory.clone(), Budget::default());
        Self::over(TestDevice::new(behaviour), self.memory.clone(), cache, record)
    }

    /// A device in use, with its first queue.
    pub fn running(behaviour: Behaviour) -> (Self, RawQueue) {
        let rig = Self::new(behaviour);
        let queue = rig.queue(0);
        rig.registers.bring_up(VERSION_1 | RING_RESET, &queue);
        (rig, queue)
    }

    /// A device in use that has a request in hand which it cannot finish before the gate opens.
    pub fn busy() -> (Self, RawQueue) {
        let (rig, queue) = Self::running(Behaviour::Hold);
        rig.offer(&queue);
        eventually("the device takes the request", || rig.device.held.load(SeqCst) == 1);
        (rig, queue)
    }

    /// An empty queue of 8 entries; each index has its place in memory.
    pub fn queue(&self, index: u64) -> RawQueue {
        let queue = RawQueue::new(self.memory.clone(), RAM + index * 0x1000, 8);
        queue.clear();
        queue
    }

    /// Offers a request of two descriptors in the next slots and kicks queue 0.
    pub fn offer(&self, queue: &RawQueue) {
        let head = queue.avail_idx() * 2 % 8;
        self.memory.write(BUFFERS, b"ping");
        queue.write_chain(head, &[Descriptor::readable(BUFFERS, 4), Descriptor::writable(BUFFERS + 0x100, 16)]);
        queue.publish(head);
        self.registers.notify(0);
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.registers.counters();
        counters.iter().find(|(its_name, _)| *its_name == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Writes to a register without waiting for the answer.
    pub fn begin(&self, register: Register, value: u32) -> Pending {
        Pending::from(self.registers.as_ref().write(register as u64, &value.to_le_bytes()))
    }

    pub fn signals(&self) -> &dyn Signals {
        &**self.device.signals.get().unwrap()
    }
}

/// A write whose answer may be outstanding.
pub struct Pending(Arc<AtomicBool>);

impl From<Written> for Pending {
    fn from(written: Written) -> Self {
        match written {
            Written::Now => Self(Arc::new(AtomicBool::new(true))),
            Written::Later(deferral) => deferral.into(),
        }
    }
}

impl From<Deferral> for Pending {
    fn from(deferral: Deferral) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let answered = done.clone();
        deferral.then(move || answered.store(true, SeqCst));
        Self(done)
    }
}

impl Pending {
    pub fn is_answered(&self) -> bool {
        self.0.load(SeqCst)
    }

    pub fn wait(&self) {
        eventually("the write is answered", || self.is_answered());
    }
}
