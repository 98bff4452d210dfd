//! A guest with a network card, and a driver of it that is written by hand.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use guest_memory::{Budget, MapCache};
use testkit::driver::{Descriptor, Lender, RawQueue, Registers, Used, Way, status};
use testkit::memory::FakeForeignMemory;
use testkit::record::left_behind;
use virtio_backend::{Backend, Record};
use virtio_mmio::{InterruptLine, Transport};
use virtio_net::engine::{Engine, HEADER_LEN};
use virtio_net::{Config, Net};

use crate::fake::FakeHost;

pub const VERSION_1: u64 = 1 << 32;
pub const CSUM: u64 = 1;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const MTU: u64 = 1 << 3;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const HOST_TSO4: u64 = 1 << 11;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const STATUS: u64 = 1 << 16;
pub const CTRL_VQ: u64 = 1 << 17;
pub const CTRL_RX: u64 = 1 << 18;
pub const CTRL_VLAN: u64 = 1 << 19;
pub const CTRL_RX_EXTRA: u64 = 1 << 20;
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
pub const MQ: u64 = 1 << 22;
pub const CTRL_MAC_ADDR: u64 = 1 << 23;

/// All that lets the driver have a say.
pub const CONTROL: u64 = CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR;

pub const RX: usize = 0;
pub const TX: usize = 1;

pub const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
pub const PEER: [u8; 6] = [0, 0x16, 0x3e, 9, 9, 9];
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Guest memory: queues, then buffers.
pub const BASE: u64 = 0x4000_0000;
pub const MEMORY: u64 = 64 << 20;
const QUEUE: u64 = 0x4000;
const BUFFERS: u64 = BASE + (1 << 20);

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Counts interrupts.
#[derive(Default)]
struct Line(AtomicU64);

impl InterruptLine for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// Waits for what must happen.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "it should have come to this: {what}");
        std::thread::yield_now();
    }
}

/// The configuration of most cards.
pub fn config() -> Config {
    Config { mac: Some(MAC.try_into().unwrap()), ..Config::default() }
}

/// A frame from the card, or whoever, to whoever.
pub fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], payload].concat()
}

/// A frame for the card, recognisable by `seed`.
pub fn for_card(len: usize, seed: u8) -> Vec<u8> {
    frame(MAC, PEER, &pattern(len - 14, seed))
}

/// A frame of the card's, recognisable by `seed`.
pub fn from_card(len: usize, seed: u8) -> Vec<u8> {
    frame(PEER, MAC, &pattern(len - 14, seed))
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

fn serve(card: &Arc<dyn Backend>, cache: &Arc<MapCache>, record: &Record) -> Arc<Transport> {
    let (line, cache) = (Arc::new(Line::default()), Arc::clone(cache));
    Transport::recorded(Arc::clone(card), line, cache, "net", record.clone()).unwrap()
}

/// A guest whose driver has started its card, or is about to.
pub struct Guest {
    pub memory: FakeForeignMemory,
    pub lender: Lender,
    pub cache: Arc<MapCache>,
    pub card: Arc<dyn Backend>,
    pub transport: Arc<Transport>,
    record: Record,
    pub queues: Vec<RawQueue>,
    pub features: u64,
    /// The next free byte of guest memory.
    free: AtomicU64,
    /// By queue: the next free slot of the descriptor table, modulo its size.
    slots: Vec<AtomicU16>,
}

impl Guest {
    /// A guest over a fake host, with these features and 64 entries in each queue.
    pub fn new(features: u64) -> (Self, FakeHost) {
        Self::configured(&config(), features)
    }

    /// The same, of another configuration.
    pub fn configured(config: &Config, features: u64) -> (Self, FakeHost) {
        let (host, engine) = FakeHost::new(config.queues);
        (Self::over(config, engine, features), host)
    }

    /// A guest over any host.
    pub fn over(config: &Config, engine: Engine, features: u64) -> Self {
        Self::with_card(Arc::new(Net::with_engine(config, engine).unwrap()), features)
    }

    /// The same as [`Guest::new`], with a card that reaches memory by `way`.
    pub fn by(way: Way, features: u64) -> (Self, FakeHost) {
        let (host, engine) = FakeHost::new(1);
        let card = Arc::new(Net::with_engine(&config(), engine).unwrap());
        let guest = Self::before_start_by(way, card, features, 64);
        guest.start();
        (guest, host)
    }

    /// A guest with any card.
    pub fn with_card(card: Arc<dyn Backend>, features: u64) -> Self {
        let guest = Self::before_start(card, features, 64);
        guest.start();
        guest
    }

    /// A guest that has not touched its card yet.
    pub fn before_start(card: Arc<dyn Backend>, features: u64, queue_size: u16) -> Self {
        Self::before_start_by(Way::Frames, card, features, queue_size)
    }

    /// The same, with a card that reaches memory by `way`.
    pub fn before_start_by(way: Way, card: Arc<dyn Backend>, features: u64, queue_size: u16) -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, MEMORY)]);
        let lender = Lender::new(way, memory.clone());
        let cache = MapCache::new(lender.sources(), Budget::default());
        let record = Record::new().unwrap();
        let transport = serve(&card, &cache, &record);
        let count = card.identity().queue_sizes.len();
        let queues = (0..count as u64).map(|queue| RawQueue::new(memory.clone(), BASE + queue * QUEUE, queue_size));
        let queues = queues.map(|queue| lender.lend_queue(queue)).collect();
        let slots = (0..count).map(|_| AtomicU16::new(0)).collect();
        let features = features | VERSION_1 | lender.features();
        Self { memory, lender, cache, card, transport, record, queues, features, free: AtomicU64::new(BUFFERS), slots }
    }

    /// The process is killed, and another one goes on with a card over `engine`.
    pub fn kill(&mut self, config: &Config, engine: Engine) {
        // Of a process that is killed nothing is given back any more.
        let (record, mut queues) = (left_behind(&self.record), vec![0; self.queues.len() * QUEUE as usize]);
        self.memory.read(BASE, &mut queues);
        let (ended, end) = mpsc::channel();
        self.transport.stop().then(move || ended.send(()).unwrap());
        end.recv_timeout(PATIENCE).expect("the end of the old process");
        self.memory.write(BASE, &queues);
        self.card = Arc::new(Net::with_engine(config, engine).unwrap());
        self.transport = serve(&self.card, &self.cache, &record);
        self.record = record;
    }

    /// From reset to DRIVER_OK, with all queues.
    pub fn start(&self) {
        assert!(self.transport.negotiate(self.features), "the card refuses features {:#x}", self.features);
        for (index, queue) in (0..).zip(&self.queues) {
            self.transport.set_up_queue(index, queue);
        }
        self.transport.add_status(status::DRIVER_OK);
    }

    /// Resets the card and starts it anew, with other features.
    pub fn restart(&mut self, features: u64) {
        self.transport.reset();
        self.queues.iter().for_each(RawQueue::clear);
        self.slots.iter().for_each(|slot| slot.store(0, SeqCst));
        self.features = features | VERSION_1 | self.lender.features();
        self.start();
    }

    /// Guest memory that nobody uses yet, away from what was taken before.
    pub fn allocate(&self, len: usize) -> u64 {
        let address = self.free.fetch_add((len as u64 + 64).next_multiple_of(64), SeqCst);
        assert!(address + (len as u64) < BASE + MEMORY, "the guest is out of memory");
        address
    }

    /// The control queue.
    pub fn control_queue(&self) -> usize {
        if self.features & MQ == 0 { 2 } else { self.queues.len() - 1 }
    }

    /// Publishes a chain, and kicks.
    pub fn offer(&self, queue: usize, chain: &[Descriptor]) -> u16 {
        let head = self.publish(queue, chain);
        self.transport.notify(queue as u32);
        head
    }

    /// Publishes a chain in the next free slots.
    pub fn publish(&self, queue: usize, chain: &[Descriptor]) -> u16 {
        let (size, len) = (self.queues[queue].size(), chain.len() as u16);
        let mut slot = self.slots[queue].load(SeqCst) % size;
        if slot + len > size {
            slot = 0;
        }
        self.slots[queue].store(slot + len, SeqCst);
        let chain: Vec<_> = chain.iter().map(|buffer| self.lender.lend_buffer(*buffer)).collect();
        self.queues[queue].write_chain(slot, &chain);
        self.queues[queue].publish(slot);
        slot
    }

    /// Sends a packet, header first, in pieces of these lengths and the rest in one. Returns how many were sent so far.
    pub fn send_in(&self, queue: usize, packet: &[u8], pieces: &[usize]) -> u16 {
        let address = self.allocate(packet.len());
        self.memory.write(address, packet);
        let mut chain = Vec::new();
        let mut at = 0;
        for len in pieces.iter().copied().chain([packet.len() - pieces.iter().sum::<usize>()]) {
            chain.push(Descriptor::readable(address + at as u64, len as u32));
            at += len;
        }
        self.offer(queue, &chain);
        self.queues[queue].avail_idx()
    }

    /// Sends a frame with a header that says nothing, and waits until the card is done with it.
    pub fn send(&self, frame: &[u8]) {
        self.send_with(&[0; HEADER_LEN], frame);
    }

    /// The same, with a header.
    pub fn send_with(&self, header: &[u8; HEADER_LEN], frame: &[u8]) {
        let count = self.send_in(TX, &[header, frame].concat(), &[]);
        self.queues[TX].wait_used(count);
    }

    /// Makes a buffer available for packets; returns where it is.
    pub fn post(&self, len: usize) -> u64 {
        let address = self.allocate(len);
        self.memory.write(address, &vec![0xee; len]);
        self.offer(RX, &[Descriptor::writable(address, len as u32)]);
        address
    }

    /// Makes several buffers available for packets.
    pub fn post_many(&self, count: usize, len: usize) {
        for _ in 0..count {
            self.post(len);
        }
    }

    /// Takes a while, in which a lane that spins would make thousands of passes.
    pub fn pass_time(&self) {
        for _ in 0..2000 {
            self.mac();
        }
    }

    /// Waits for the card to have used `count` buffers in all, and returns the last.
    pub fn wait_rx(&self, count: u16) -> Used {
        self.queues[RX].wait_used(count)
    }

    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes);
        bytes
    }

    /// Has the card do what these bytes say, class first; returns its answer.
    pub fn command(&self, bytes: &[u8]) -> u8 {
        let queue = self.control_queue();
        let address = self.allocate(bytes.len() + 1);
        self.memory.write(address, bytes);
        let answer = address + bytes.len() as u64;
        self.memory.write(answer, &[0xee]);
        let count = self.queues[queue].avail_idx().wrapping_add(1);
        let chain = [Descriptor::readable(address, bytes.len() as u32), Descriptor::writable(answer, 1)];
        self.offer(queue, &chain);
        assert_eq!(self.queues[queue].wait_used(count).len, 1);
        self.bytes(answer, 1)[0]
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.transport.counters().iter().find(|(other, _)| *other == name).unwrap_or_else(|| panic!("{name}?")).1
    }

    pub fn wait_counter(&self, name: &str, value: u64) {
        until(&format!("{name} is {value}, and is {}", self.counter(name)), || self.counter(name) == value);
    }

    pub fn config_byte(&self, offset: u64) -> u8 {
        self.transport.load(0x100 + offset, 1) as u8
    }

    pub fn mac(&self) -> [u8; 6] {
        std::array::from_fn(|at| self.config_byte(at as u64))
    }

    /// The status field of configuration space.
    pub fn link_status(&self) -> u8 {
        self.config_byte(6)
    }

    pub fn needs_reset(&self) -> bool {
        self.transport.status() & status::DEVICE_NEEDS_RESET != 0
    }

    /// The card sends and receives as if nothing had been.
    pub fn assert_alive(&self, host: &FakeHost) {
        assert!(!self.needs_reset());
        self.send(&from_card(60, 0x77));
        assert_eq!(host.take().1, from_card(60, 0x77));
        let (count, before) = (self.queues[RX].used_idx(), self.counter("rx_packets"));
        for _ in 0..4 {
            self.post(2048);
        }
        host.put(&for_card(60, 0x78));
        until("a packet is received", || self.counter("rx_packets") > before && self.queues[RX].used_idx() != count);
    }
}
