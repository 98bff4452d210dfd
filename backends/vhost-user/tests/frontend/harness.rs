//! The guest's side: its memory, its queues, and the registers of a device.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use guest_memory::{Budget, MapCache};
use testkit::device::eventually;
use testkit::driver::{Descriptor, Lender, RawQueue, Register, Registers, Used, Way, status};
use testkit::memory::FakeForeignMemory;
use testkit::record::left_behind;
use virtio_backend::{Backend, Kind, Owner, Record, reach};
use virtio_mmio::{InterruptLine, Transport};
use virtio_vhost_user::{Config, DeviceType, VhostUser, VhostUserError};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_LEN: u64 = 64 << 20;

/// Where tests put buffers: behind the queues.
pub const BUFFERS: u64 = RAM + 0x10_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

/// What buffers hold before the device writes to them.
pub const UNTOUCHED: u8 = 0xee;

/// The driver polls.
pub struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A device of this type, with a backend at `socket`.
pub fn config(device: u32, socket: &Path) -> Config {
    Config { device: Some(DeviceType::of_id(device)), socket: socket.to_owned(), ..Config::default() }
}

/// Opens and makes a device, as the two processes do that share the work.
pub fn make(config: Config) -> Result<Arc<dyn Backend>, VhostUserError> {
    let (config, descriptors) = open(config)?;
    VhostUser::make(&config, descriptors, reach::directly::<VhostUser>(&config))
}

fn open(mut config: Config) -> Result<(Config, Vec<OwnedFd>), VhostUserError> {
    let owner =
        Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/nonexistent".into() };
    let descriptors = VhostUser::open(&mut config, &owner)?;
    Ok((config, descriptors))
}

/// A device before a driver.
pub struct Guest {
    pub registers: Arc<Transport>,
    pub memory: FakeForeignMemory,
    pub lender: Lender,
    pub queues: Vec<RawQueue>,
    cache: Arc<MapCache>,
    record: Record,
    /// What the device is made of, for the process that follows.
    opened: (Config, Vec<OwnedFd>),
}

/// Serves a device as a process does that is handed all this.
fn serve(opened: &(Config, Vec<OwnedFd>), cache: &Arc<MapCache>, record: &Record) -> (Arc<Transport>, usize) {
    let descriptors = opened.1.iter().map(|descriptor| descriptor.try_clone().unwrap());
    let reach = reach::directly::<VhostUser>(&opened.0);
    let device = VhostUser::make(&opened.0, descriptors.collect(), reach).unwrap();
    let count = device.identity().queue_sizes.len();
    (Transport::recorded(device, Arc::new(NoLine), Arc::clone(cache), "test", record.clone()).unwrap(), count)
}

impl Guest {
    /// A driver has brought the device up, with all that it offers, and with queues of this size.
    pub fn new(config: Config, queue_size: u16) -> Self {
        Self::by(Way::Frames, config, queue_size)
    }

    /// The same, with a device that reaches memory by `way`.
    pub fn by(way: Way, config: Config, queue_size: u16) -> Self {
        let guest = Self::without_driver(way, config, queue_size);
        guest.bring_up();
        guest
    }

    pub fn without_driver(way: Way, config: Config, queue_size: u16) -> Self {
        let opened = open(config).unwrap();
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let lender = Lender::new(way, memory.clone());
        let cache = MapCache::new(lender.sources(), Budget::default());
        let record = Record::new().unwrap();
        let (registers, count) = serve(&opened, &cache, &record);
        let queues = (0..count as u64).map(|index| RawQueue::new(memory.clone(), RAM + 0x1_0000 * index, queue_size));
        let queues = queues.map(|queue| lender.lend_queue(queue)).collect();
        Self { registers, memory, lender, queues, cache, record, opened }
    }

    /// The process is killed, and another one goes on with the device.
    pub fn kill(&mut self) {
        self.kill_then(|| {});
    }

    /// The same; something happens in between.
    pub fn kill_then(&mut self, happens: impl FnOnce()) {
        // Of a process that is killed nothing is given back any more.
        let (record, mut queues) = (left_behind(&self.record), vec![0; self.queues.len() * 0x1_0000]);
        self.memory.read(RAM, &mut queues);
        let (ended, end) = mpsc::channel();
        self.registers.stop().then(move || ended.send(()).unwrap());
        end.recv_timeout(Duration::from_secs(20)).expect("the end of the old process");
        self.memory.write(RAM, &queues);
        happens();
        (self.registers, _) = serve(&self.opened, &self.cache, &record);
        self.record = record;
    }

    pub fn bring_up(&self) {
        self.queues.iter().for_each(RawQueue::clear);
        assert!(self.registers.negotiate(self.registers.offered_features()));
        for (index, queue) in (0..).zip(&self.queues) {
            self.registers.set_up_queue(index, queue);
        }
        self.registers.add_status(status::DRIVER_OK);
    }

    /// The driver resets the device and brings it up again.
    pub fn reset(&self) {
        self.registers.reset();
        self.bring_up();
    }

    /// Offers a chain in the slots from `head` on, and kicks.
    pub fn offer(&self, queue: usize, head: u16, chain: &[Descriptor]) {
        let chain: Vec<_> = chain.iter().map(|buffer| self.lender.lend_buffer(*buffer)).collect();
        self.queues[queue].write_chain(head, &chain);
        self.queues[queue].publish(head);
        self.registers.notify(queue as u32);
    }

    /// Waits until so many chains have come back in all; returns the last.
    pub fn wait_used(&self, queue: usize, count: u16) -> Used {
        self.queues[queue].wait_used(count)
    }

    pub fn fill(&self, address: u64, len: usize, byte: u8) {
        self.memory.write(address, &vec![byte; len]);
    }

    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes);
        bytes
    }

    pub fn config_bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let byte = |at| self.registers.load(Register::Config as u64 + offset + at, 1) as u8;
        (0..len as u64).map(byte).collect()
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.registers.counters();
        counters.iter().find(|(its_name, _)| *its_name == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Whether a configuration interrupt waits to be acknowledged.
    pub fn is_told_of_config(&self) -> bool {
        self.registers.read(Register::InterruptStatus) & 2 != 0
    }

    pub fn needs_reset(&self) -> bool {
        self.registers.status() & status::DEVICE_NEEDS_RESET != 0
    }

    pub fn wait_for_fault(&self) {
        eventually("the device needs a reset", || self.needs_reset());
    }
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at / 512) as u8 ^ seed).collect()
}
