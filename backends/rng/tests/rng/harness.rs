//! What the tests stand on: a source that does as it is told, and a device with one queue.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use guest_memory::{Budget, MapCache};
use testkit::driver::{Descriptor, RawQueue, Registers, Used, status};
use testkit::memory::FakeForeignMemory;
use testkit::record::left_behind;
use virtio_backend::Record;
use virtio_mmio::{InterruptLine, Transport};
use virtio_rng::{Config, Rng, Source};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_LEN: u64 = 8 << 20;
/// Where tests put buffers: behind the queue.
pub const BUFFERS: u64 = RAM + 0x1_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;

/// What a buffer holds before the device writes to it.
pub const UNTOUCHED: u8 = 0;

/// What the source does when it is asked.
#[derive(Clone, Copy, Debug)]
pub enum Mood {
    /// Gives what is asked, at most so many bytes.
    Gives(usize),
    /// Fails with this error number.
    Fails(i32),
    /// Says that it gave more than it was asked for.
    Lies,
}

/// Gives the numbers 1 to 255 again and again, if it is in the mood.
pub struct Scripted {
    mood: Mutex<Mood>,
    asked: AtomicU64,
}

impl Scripted {
    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }
}

impl Source for Scripted {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.asked.fetch_add(1, SeqCst);
        let mood = *self.mood.lock().unwrap();
        // What is not given is scribbled on, too: the guest must see nothing of it.
        bytes.fill(0xff);
        match mood {
            Mood::Gives(most) => {
                let given = bytes.len().min(most);
                bytes[..given].copy_from_slice(&random(given));
                Ok(given)
            }
            Mood::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
            Mood::Lies => Ok(bytes.len() + 1),
        }
    }
}

/// What the source gives when it is asked for `len` bytes.
pub fn random(len: usize) -> Vec<u8> {
    (1..=255).cycle().take(len).collect()
}

/// Counts interrupts.
#[derive(Default)]
pub struct Line(AtomicU64);

impl InterruptLine for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }
}

impl Line {
    pub fn raised(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

pub struct Rig {
    pub registers: Arc<Transport>,
    pub queue: RawQueue,
    pub memory: FakeForeignMemory,
    pub source: Arc<Scripted>,
    pub line: Arc<Line>,
    pub features: u64,
    record: Record,
}

/// Serves a device as a process does that is handed all this.
fn serve(
    config: &Config,
    source: &Arc<Scripted>,
    memory: &FakeForeignMemory,
    line: &Arc<Line>,
    record: &Record,
) -> Arc<Transport> {
    let device = Arc::new(Rng::with_source(config, Arc::clone(source) as _).unwrap());
    let cache = MapCache::new(memory.clone(), Budget::default());
    Transport::recorded(device, Arc::clone(line) as _, cache, "rng", record.clone()).unwrap()
}

impl Rig {
    /// A device in use, with a source in this mood.
    pub fn new(mood: Mood) -> Self {
        Self::with(mood, Config::default(), VERSION_1)
    }

    pub fn with(mood: Mood, config: Config, features: u64) -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let source = Arc::new(Scripted { mood: Mutex::new(mood), asked: AtomicU64::new(0) });
        let line = Arc::<Line>::default();
        let record = Record::new().unwrap();
        let registers = serve(&config, &source, &memory, &line, &record);
        let queue = RawQueue::new(memory.clone(), RAM, 64);
        let rig = Self { registers, queue, memory, source, line, features, record };
        rig.bring_up();
        rig
    }

    fn bring_up(&self) {
        self.queue.clear();
        self.registers.bring_up(self.features, &self.queue);
    }

    /// The process is killed, and another one goes on with a device of the usual configuration.
    pub fn kill(&mut self) {
        let record = left_behind(&self.record);
        let (ended, end) = mpsc::channel();
        self.registers.stop().then(move || ended.send(()).unwrap());
        end.recv_timeout(Duration::from_secs(20)).expect("the end of the old process");
        self.registers = serve(&Config::default(), &self.source, &self.memory, &self.line, &record);
        self.record = record;
    }

    /// The driver resets the device and starts anew.
    pub fn reset(&self) {
        self.registers.reset();
        self.bring_up();
    }

    /// Offers a chain whose first slot is `head`, and kicks.
    pub fn offer(&self, head: u16, chain: &[Descriptor]) {
        self.queue.write_chain(head, chain);
        self.queue.publish(head);
        self.kick();
    }

    pub fn kick(&self) {
        self.registers.notify(0);
    }

    /// Offers a chain and waits for it to come back.
    pub fn run(&self, chain: &[Descriptor]) -> Used {
        let before = self.queue.used_idx();
        self.offer(0, chain);
        self.queue.wait_used(before.wrapping_add(1))
    }

    /// Asks for `len` bytes, into memory that holds nothing yet; returns the bytes that were given.
    pub fn ask(&self, len: u32) -> Vec<u8> {
        self.memory.write(BUFFERS, &vec![UNTOUCHED; len as usize]);
        let used = self.run(&[Descriptor::writable(BUFFERS, len)]);
        self.bytes(BUFFERS, used.len as usize)
    }

    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes);
        bytes
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.registers.counters();
        counters.iter().find(|(its_name, _)| *its_name == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    pub fn needs_reset(&self) -> bool {
        self.registers.status() & status::DEVICE_NEEDS_RESET != 0
    }

    /// The device works as if nothing had been.
    pub fn assert_alive(&self) {
        assert!(!self.needs_reset());
        assert_eq!(self.ask(8), random(8));
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
