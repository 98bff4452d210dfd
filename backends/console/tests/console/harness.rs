//! What the tests stand on: a guest's memory, a console behind registers, and its queues, written by hand.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use guest_memory::{Budget, MapCache, Sources};
use tempfile::TempDir;
use testkit::driver::{Descriptor, RawQueue, Register, Registers, status};
use testkit::memory::FakeForeignMemory;
use testkit::record::left_behind;
use virtio_backend::{Kind, Owner, Record, reach};
use virtio_console::{Config, Console};
use virtio_mmio::{InterruptLine, Transport};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Guest memory: the queues, then a buffer for each of their slots.
pub const BASE: u64 = 0x4000_0000;
const MEMORY: u64 = 32 << 20;
const QUEUE_BYTES: u64 = 0x1000;
const BUFFERS: u64 = BASE + (1 << 20);
pub const BUFFER: u32 = 4096;
/// For requests of more than a buffer.
pub const LARGE: u64 = BASE + (16 << 20);

const SIZE: u16 = 64;

pub const F_SIZE: u64 = 1 << 0;
pub const F_MULTIPORT: u64 = 1 << 1;
const F_VERSION_1: u64 = 1 << 32;

/// VIRTIO_CONSOLE_* (virtio 1.2 §5.3.6.2).
pub mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const ADD: u16 = 1;
    pub const READY: u16 = 3;
    pub const CONSOLE: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const OPEN: u16 = 6;
    pub const NAME: u16 = 7;
}

pub const CONTROL_RECEIVE: usize = 2;
pub const CONTROL_TRANSMIT: usize = 3;

pub fn receive(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

pub fn transmit(port: usize) -> usize {
    receive(port) + 1
}

/// Counts interrupts.
#[derive(Default)]
pub struct Line(AtomicU32);

impl InterruptLine for Line {
    fn raise(&self) -> std::io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Line {
    pub fn raised(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A console, opened and made. What it has left on the host goes with it.
pub struct Rig {
    pub transport: Arc<Transport>,
    pub memory: FakeForeignMemory,
    pub line: Arc<Line>,
    pub config: Config,
    pub owner: Owner,
    pub directory: TempDir,
    cache: Arc<MapCache>,
    record: Record,
    /// What the console is made of, for the process that follows.
    pub descriptors: Vec<OwnedFd>,
    queues: Vec<RawQueue>,
    /// By queue: requests made so far, and inputs looked at.
    made: Mutex<Vec<(u16, u16)>>,
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        thread::yield_now();
    }
}

pub fn owner(directory: &Path) -> Owner {
    Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: directory.to_owned() }
}

/// Serves a console as a process does that is handed all this.
fn serve(
    config: &Config,
    descriptors: &[OwnedFd],
    line: &Arc<Line>,
    cache: &Arc<MapCache>,
    record: &Record,
) -> Arc<Transport> {
    let descriptors = descriptors.iter().map(|descriptor| descriptor.try_clone().unwrap());
    let console = Console::make(config, descriptors.collect(), reach::directly::<Console>(config)).unwrap();
    Transport::recorded(console, Arc::clone(line) as _, Arc::clone(cache), "console", record.clone()).unwrap()
}

impl Rig {
    /// A console as it is written; `DIR` stands for a directory of the test. No driver yet.
    pub fn new(written: &str) -> Self {
        Self::reached_by(written, |memory| memory.clone().into())
    }

    /// The same, which reaches the guest's memory by what `sources` says.
    pub fn reached_by(written: &str, sources: impl FnOnce(&FakeForeignMemory) -> Sources) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let written = written.replace("DIR", directory.path().to_str().unwrap());
        let mut config: Config = toml::from_str(&written).unwrap();
        let owner = owner(directory.path());
        Console::check(&config).unwrap();
        let descriptors = Console::open(&mut config, &owner).unwrap();
        let memory = FakeForeignMemory::new(&[(BASE, MEMORY)]);
        let line = Arc::<Line>::default();
        let cache = MapCache::new(sources(&memory), Budget::default());
        let record = Record::new().unwrap();
        let transport = serve(&config, &descriptors, &line, &cache, &record);
        let ports = config.ports.len();
        let count = if ports > 1 { 2 * ports + 2 } else { 2 };
        let at = |queue| BASE + queue as u64 * QUEUE_BYTES;
        let queues: Vec<_> = (0..count).map(|queue| RawQueue::new(memory.clone(), at(queue), SIZE)).collect();
        let made = Mutex::new(vec![(0, 0); count]);
        Self { transport, memory, line, config, owner, directory, cache, record, descriptors, queues, made }
    }

    /// The process is killed, and another one goes on with the console.
    pub fn killed(self) -> Self {
        // Of a process that is killed nothing is given back any more.
        let (record, mut queues) = (left_behind(&self.record), vec![0; self.queues.len() * QUEUE_BYTES as usize]);
        self.memory.read(BASE, &mut queues);
        let (ended, end) = mpsc::channel();
        self.transport.stop().then(move || ended.send(()).unwrap());
        end.recv_timeout(PATIENCE).expect("the end of the old process");
        // Its threads go with it.
        drop(self.transport);
        self.memory.write(BASE, &queues);
        let transport = serve(&self.config, &self.descriptors, &self.line, &self.cache, &record);
        Self { transport, record, ..self }
    }

    /// The same with a driver that uses one port.
    pub fn classic(written: &str) -> Self {
        let rig = Self::new(written);
        rig.bring_up(F_SIZE);
        rig
    }

    /// The same with a driver that knows several ports, and has them all open.
    pub fn multiport(written: &str) -> Self {
        let rig = Self::new(written);
        rig.bring_up(F_MULTIPORT);
        rig.introduce();
        rig
    }

    /// From reset to DRIVER_OK.
    pub fn bring_up(&self, features: u64) {
        self.made.lock().unwrap().fill((0, 0));
        assert!(self.transport.negotiate(features | F_VERSION_1), "the features are offered");
        let queues = if features & F_MULTIPORT != 0 { self.queues.len() } else { 2 };
        for (index, queue) in (0..).zip(&self.queues[..queues]) {
            queue.clear();
            self.transport.set_up_queue(index, queue);
        }
        self.transport.add_status(status::DRIVER_OK);
    }

    /// Goes through the protocol of the control queues until every port is open in the guest. Returns what the device
    /// said of ports that were ready.
    pub fn introduce(&self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let ports = self.config.ports.len() as u32;
        self.offer_control_buffers(SIZE);
        self.control(u32::MAX, event::DEVICE_READY, 1);
        for port in 0..ports {
            assert_eq!(self.next_control(), (port, event::ADD, 1, vec![]));
            self.control(port, event::READY, 1);
        }
        let mut said = Vec::new();
        for (index, port) in self.config.ports.iter().enumerate() {
            let messages = usize::from(index == 0) + usize::from(port.name.is_some());
            said.extend((0..messages).map(|_| self.next_control()));
        }
        (0..ports).for_each(|port| self.control(port, event::OPEN, 1));
        said
    }

    pub fn queue(&self, queue: usize) -> &RawQueue {
        &self.queues[queue]
    }

    /// Where the buffer of a queue's slot is.
    pub fn buffer(queue: usize, slot: u16) -> u64 {
        BUFFERS + (queue as u64 * u64::from(SIZE) + u64::from(slot)) * u64::from(BUFFER)
    }

    /// Makes a request of `buffers`, and tells the device. Returns how many there have been.
    pub fn request(&self, queue: usize, buffers: impl FnOnce(u16) -> Vec<Descriptor>) -> u16 {
        let mut made = self.made.lock().unwrap();
        let slot = made[queue].0 % SIZE;
        self.queues[queue].write_chain(slot, &buffers(slot));
        self.queues[queue].publish(slot);
        made[queue].0 = made[queue].0.wrapping_add(1);
        self.transport.notify(queue as u32);
        made[queue].0
    }

    /// Prints up to a buffer without waiting for the device to take it.
    pub fn print_later(&self, port: usize, bytes: &[u8]) -> u16 {
        let queue = transmit(port);
        self.request(queue, |slot| {
            self.memory.write(Self::buffer(queue, slot), bytes);
            vec![Descriptor::readable(Self::buffer(queue, slot), bytes.len() as u32)]
        })
    }

    /// Prints, as a driver that waits.
    pub fn print(&self, port: usize, bytes: &[u8]) {
        for bytes in bytes.chunks(BUFFER as usize) {
            let made = self.print_later(port, bytes);
            assert_eq!(self.queues[transmit(port)].wait_used(made).len, 0, "output writes nothing");
        }
    }

    /// Gives the device a buffer for input.
    pub fn offer_input_buffer(&self, port: usize, len: u32) {
        let queue = receive(port);
        self.request(queue, |slot| vec![Descriptor::writable(Self::buffer(queue, slot), len)]);
    }

    /// What the device has put into the next buffer that was offered.
    pub fn next_input(&self, port: usize) -> Vec<u8> {
        self.next_filled(receive(port))
    }

    fn next_filled(&self, queue: usize) -> Vec<u8> {
        let looked = self.made.lock().unwrap()[queue].1;
        let ahead = || self.queues[queue].used_idx().wrapping_sub(looked);
        let deadline = Instant::now() + PATIENCE;
        while ahead() == 0 {
            assert!(Instant::now() < deadline, "queue {queue} gives no buffer back: {:?}", self.transport.counters());
            thread::yield_now();
        }
        self.made.lock().unwrap()[queue].1 = looked.wrapping_add(1);
        let used = self.queues[queue].used(looked);
        let mut bytes = vec![0; used.len as usize];
        self.memory.read(Self::buffer(queue, used.id as u16), &mut bytes);
        bytes
    }

    /// All input until there is so much of it, into buffers that are offered one by one.
    pub fn read_input(&self, port: usize, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            self.offer_input_buffer(port, 100);
            bytes.extend(self.next_input(port));
        }
        bytes
    }

    pub fn offer_control_buffers(&self, count: u16) {
        for _ in 0..count {
            let buffer = |slot| vec![Descriptor::writable(Self::buffer(CONTROL_RECEIVE, slot), BUFFER)];
            self.request(CONTROL_RECEIVE, buffer);
        }
    }

    /// Sends a control message, and waits until it is taken.
    pub fn control(&self, id: u32, event: u16, value: u16) {
        let message = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.control_bytes(&message);
    }

    pub fn control_bytes(&self, message: &[u8]) {
        let made = self.request(CONTROL_TRANSMIT, |slot| {
            self.memory.write(Self::buffer(CONTROL_TRANSMIT, slot), message);
            vec![Descriptor::readable(Self::buffer(CONTROL_TRANSMIT, slot), message.len() as u32)]
        });
        self.queues[CONTROL_TRANSMIT].wait_used(made);
    }

    /// The next control message of the device: id, event, value, and what follows.
    pub fn next_control(&self) -> (u32, u16, u16, Vec<u8>) {
        let bytes = self.next_filled(CONTROL_RECEIVE);
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let id = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        (id, half(4), half(6), bytes[8..].to_vec())
    }

    /// Control messages of the device that nobody has looked at.
    pub fn untaken_controls(&self) -> u16 {
        self.queues[CONTROL_RECEIVE].used_idx().wrapping_sub(self.made.lock().unwrap()[CONTROL_RECEIVE].1)
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.transport.counters();
        counters.iter().find(|(counter, _)| *counter == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Where people find a port.
    pub fn place(&self, port: &str) -> PathBuf {
        self.directory.path().join("consoles/web").join(port)
    }

    pub fn assert_healthy(&self) {
        assert_eq!(self.transport.status() & status::DEVICE_NEEDS_RESET, 0, "the device needs a reset");
    }

    /// Columns and rows in configuration space.
    pub fn config_size(&self) -> (u64, u64) {
        let at = Register::Config as u64;
        (self.transport.load(at, 2), self.transport.load(at + 2, 2))
    }
}

/// Bytes that tell where they come from.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256 * 13 + n / 65536 * 29) as u8).collect()
}
