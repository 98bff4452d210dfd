//! Any accesses to the registers of a device that does nothing, beside a model of them.
//!
//! Offsets, widths and values are what the bytes say; half of them are near what a driver would do, so that it gets
//! somewhere. Queues are set up well, or so that no device could work them. In between the device says that its
//! configuration space has changed, and its process ends and is followed by another.
//!
//! - Every read gives what the model says, whatever the order of accesses.
//! - A driver that says DRIVER_OK with a queue that cannot be finds DEVICE_NEEDS_RESET; one with sound queues does not.
//! - A write that is answered later is answered. After a reset, everything is as it was at first.
//! - The process that follows shows what the one before did.

mod model;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::{Budget, MapCache};
use io_bus::{Deferral, Device, Written};
use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Record};
use virtio_mmio::{InterruptLine, Transport};

use model::{Model, NEEDS_RESET, QUEUES, STATUS};

/// Where the guest's memory is, and how much there is of it.
const RAM: u64 = 0x4000_0000;
const RAM_LEN: u64 = 16 << 12;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many processes may follow each other.
const LIVES: usize = 4;

/// One thing that happens.
#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        offset: Offset,
        width: Width,
    },
    Write {
        offset: Offset,
        width: Width,
        value: Value,
    },
    /// The driver does what one does to set up a queue.
    SetUp {
        queue: u8,
        size: Value,
        place: u8,
        ready: bool,
    },
    /// It negotiates these features.
    Negotiate {
        features: u64,
        honest: bool,
    },
    ConfigChanges,
    Follow,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Offset {
    /// One of the window's words.
    Word(u8),
    /// A byte of the window.
    Byte(u16),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Width {
    Four,
    Other(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Value {
    Small(u8),
    Bit(u8),
    /// In guest memory.
    Address(u16),
    Any(u64),
}

impl Offset {
    fn number(self) -> u64 {
        match self {
            Self::Word(word) => u64::from(word % 0x48) * 4,
            Self::Byte(byte) => u64::from(byte % 0x200),
            Self::Any(offset) => offset,
        }
    }
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Other(width) => usize::from(width % 9),
        }
    }
}

impl Value {
    fn number(self) -> u64 {
        match self {
            Self::Small(value) => value.into(),
            Self::Bit(bit) => 1 << (bit % 64),
            Self::Address(at) => RAM + u64::from(at) % RAM_LEN,
            Self::Any(value) => value,
        }
    }
}

/// Interrupts go nowhere.
struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A device, and what is kept of it.
struct Machine {
    transport: Arc<Transport>,
    device: Arc<TestDevice>,
    memory: FakeForeignMemory,
    record: Record,
    model: Model,
    lives: usize,
}

/// Makes accesses of `bytes`.
///
/// # Panics
/// A register is not what it should be.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let mut machine = Machine::new();
    while !source.is_empty() {
        let Ok(step) = Step::arbitrary(&mut source) else { break };
        machine.make(step);
    }
    machine.write(STATUS, &[0; 4]);
    machine.compare_all();
    machine.stop();
}

impl Machine {
    fn new() -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let record = Record::new().unwrap();
        let (transport, device) = serve(&memory, &record);
        Self { transport, device, memory, record, model: Model::new(), lives: 1 }
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::Read { offset, width } => self.compare(offset.number(), width.bytes()),
            Step::Write { offset, width, value } => {
                let data = value.number().to_le_bytes();
                self.write(offset.number(), &data[..width.bytes()]);
            }
            Step::SetUp { queue, size, place, ready } => self.set_up(queue, size, place, ready),
            Step::Negotiate { features, honest } => self.negotiate(features, honest),
            Step::ConfigChanges => {
                self.device.signals.get().unwrap().config_changed();
                self.model.config_changed();
            }
            Step::Follow => self.follow(),
        }
    }

    /// Writes a word to a register.
    fn put(&mut self, offset: u64, value: u64) {
        self.write(offset, &(value as u32).to_le_bytes());
    }

    /// In a queue's own pages, or somewhere near.
    fn set_up(&mut self, queue: u8, size: Value, place: u8, ready: bool) {
        let queue = usize::from(queue) % QUEUES;
        self.put(0x30, queue as u64);
        self.put(0x38, size.number());
        for (low, own) in [0x80, 0x90, 0xa0].into_iter().zip(model::own_pages(queue)) {
            let address = if place < 192 { own } else { own + u64::from(place) * 7 };
            self.put(low, address);
            self.put(low + 4, if place == u8::MAX { u64::MAX } else { address >> 32 });
        }
        self.put(0x44, ready.into());
    }

    fn negotiate(&mut self, features: u64, honest: bool) {
        let features = if honest { features & model::GOOD | 1 << 32 } else { features };
        self.put(STATUS, 1);
        self.put(STATUS, 3);
        for (word, bits) in [(0, features), (1, features >> 32)] {
            self.put(0x24, word);
            self.put(0x20, bits);
        }
        self.put(STATUS, 11);
    }

    /// The process ends, and another one goes on.
    fn follow(&mut self) {
        if self.lives == LIVES {
            return;
        }
        self.lives += 1;
        self.stop();
        (self.transport, self.device) = serve(&self.memory, &self.record);
        self.model.follow();
        self.settle();
        self.compare_all();
    }

    fn stop(&self) {
        wait_for(self.transport.stop());
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Written::Later(deferral) = self.transport.write(offset, data) {
            wait_for(deferral);
        }
        self.model.write(offset, data);
        self.settle();
    }

    /// Waits for what lanes have to say: a queue's reset ends, and a device with a queue that cannot be breaks.
    fn settle(&mut self) {
        if let Some(queue) = self.model.is_resetting.take() {
            eventually("a queue is reset", || self.word(0xc0) == 0 && self.word(0x44) == 0);
            self.model.was_reset(queue);
        }
        if self.model.breaks() {
            eventually("a queue that cannot be breaks the device", || self.word(STATUS) & NEEDS_RESET != 0);
            self.model.broke();
        }
        if self.model.is_murky() && self.word(STATUS) & NEEDS_RESET != 0 {
            self.model.broke();
        }
    }

    fn word(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn compare(&mut self, offset: u64, width: usize) {
        let mut data = vec![0xaa; width];
        self.transport.read(offset, &mut data);
        if self.model.is_murky() {
            self.settle();
            return;
        }
        let expected = self.model.read(offset, width);
        assert_eq!(data, expected, "{width} bytes at {offset:#x}: {:?}", self.model);
    }

    fn compare_all(&mut self) {
        (0..0x44).for_each(|word| self.compare(word * 4, 4));
    }
}

fn serve(memory: &FakeForeignMemory, record: &Record) -> (Arc<Transport>, Arc<TestDevice>) {
    let device = Arc::new(TestDevice::new(Behaviour::Echo));
    let cache = MapCache::new(memory.clone(), Budget::default());
    let backend = Arc::clone(&device) as Arc<dyn Backend>;
    let transport = Transport::recorded(backend, Arc::new(NoLine), cache, "fuzz", record.clone());
    (transport.unwrap(), device)
}

fn wait_for(deferral: Deferral) {
    let (done, end) = mpsc::channel();
    deferral.then(move || done.send(()).unwrap_or_default());
    end.recv_timeout(PATIENCE).expect("a write is answered");
}
