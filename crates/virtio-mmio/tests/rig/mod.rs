//! A device under test: its register file, its guest's memory, its interrupt line, and a backend that
//! does as a test says.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::io;
use std::mem;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use guest_memory::{Budget, MapCache};
use io_bus::{Deferral, Device, Written};
use testkit::driver::{Descriptor, RawQueue, Register, Registers};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Fault, Identity, Request, Ring, Signals, Wake, Worker};
use virtio_mmio::{InterruptLine, Transport};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_LEN: u64 = 0x10_0000;
/// Where tests put buffers: behind the queues.
pub const BUFFERS: u64 = RAM + 0x8_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const RING_RESET: u64 = 1 << 40;

/// Features that the device itself offers.
pub const FEATURE: u64 = 1 << 5;
pub const UNWELCOME_FEATURE: u64 = 1 << 6;

pub const CONFIG: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// What the device's workers do with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Copy its readable part to its writable part.
    Echo,
    /// The same, but not before the gate is opened.
    Hold,
    /// Hold it, and panic when told to finish.
    PanicInDrain,
    Panic,
    Fault,
    /// There is no worker: the host refuses.
    FailStart,
}

pub struct TestDevice {
    identity: Identity,
    pub behaviour: Mutex<Behaviour>,
    pub config: Mutex<Vec<u8>>,
    pub config_panics: AtomicBool,
    pub signals: OnceLock<Arc<dyn Signals>>,
    pub gate: Gate,
    /// Workers that exist.
    pub workers: Arc<AtomicU64>,
    /// Requests that workers have in hand.
    pub held: Arc<AtomicU64>,
    /// Features of the last start.
    pub features: AtomicU64,
}

/// Holds up host I/O until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

impl TestDevice {
    /// A device of two queues with a lane each.
    pub fn new(behaviour: Behaviour) -> Self {
        let identity = Identity {
            device_id: 42,
            features: FEATURE | UNWELCOME_FEATURE,
            queue_sizes: vec![16, 8],
            lanes: vec![0..1, 1..2],
            config_len: CONFIG.len(),
            max_chain_bytes: 0x1_0000,
        };
        Self {
            identity,
            behaviour: Mutex::new(behaviour),
            config: Mutex::new(CONFIG.to_vec()),
            config_panics: AtomicBool::new(false),
            signals: OnceLock::new(),
            gate: Gate::default(),
            workers: Arc::default(),
            held: Arc::default(),
            features: AtomicU64::new(0),
        }
    }
}

impl Backend for TestDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        assert!(!self.config_panics.load(SeqCst), "no such field");
        data.copy_from_slice(&self.config.lock().unwrap()[offset..offset + data.len()]);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn start(&self, _lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        let behaviour = *self.behaviour.lock().unwrap();
        if behaviour == Behaviour::FailStart {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.features.store(features, SeqCst);
        self.workers.fetch_add(1, SeqCst);
        Ok(Box::new(TestWorker {
            behaviour,
            gate: self.gate.clone(),
            requests: Vec::new(),
            workers: self.workers.clone(),
            held: self.held.clone(),
        }))
    }

    fn accepts(&self, features: u64) -> bool {
        features & UNWELCOME_FEATURE == 0
    }

    fn attach(&self, signals: Arc<dyn Signals>) {
        assert!(self.signals.set(signals).is_ok(), "attached once");
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("workers", self.workers.load(SeqCst))]
    }
}

struct TestWorker {
    behaviour: Behaviour,
    gate: Gate,
    requests: Vec<(usize, Request)>,
    workers: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
}

impl Worker for TestWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let Wake::Queue(queue) = wake else { return Ok(()) };
        rings[queue].serve(|ring, request| match self.behaviour {
            Behaviour::Echo => echo(ring, request),
            Behaviour::Hold | Behaviour::PanicInDrain => {
                self.requests.push((queue, request));
                self.held.fetch_add(1, SeqCst);
                Ok(())
            }
            Behaviour::Fault => Err(Fault::Bug("as told".into())),
            Behaviour::Panic | Behaviour::FailStart => panic!("as told"),
        })
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        assert!(self.behaviour != Behaviour::PanicInDrain || self.requests.is_empty(), "as told");
        if !self.requests.is_empty() {
            self.gate.pass();
        }
        mem::take(&mut self.requests).into_iter().try_for_each(|(queue, request)| echo(&mut rings[queue], request))
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.workers.fetch_sub(1, SeqCst);
    }
}

fn echo(ring: &mut Ring, request: Request) -> Result<(), Fault> {
    let mut bytes = vec![0; request.readable.len()];
    request.readable.read(0, &mut bytes);
    let written = request.writable.write(0, &bytes);
    ring.push(request, written)
}

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
}

impl Rig {
    /// A device just plugged in.
    pub fn new(behaviour: Behaviour) -> Self {
        Self::with(TestDevice::new(behaviour))
    }

    pub fn with(device: TestDevice) -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let cache = MapCache::new(memory.clone(), Budget::default());
        let (device, line) = (Arc::new(device), Arc::<Line>::default());
        let registers = Transport::new(device.clone(), line.clone(), cache.clone(), "test").unwrap();
        Self { device, registers, line, memory, cache }
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

/// Waits for what other threads do. Panics if they never do.
pub fn eventually(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "it never happens that {what}");
        thread::sleep(Duration::from_micros(100));
    }
}
