//! What the tests stand on: a guest whose driver is written by hand, and the host's directory of sockets.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use guest_memory::{Budget, MapCache};
use tempfile::TempDir;
use testkit::driver::{Descriptor, RawQueue, Registers, status};
use testkit::memory::FakeForeignMemory;
use testkit::record::left_behind;
use virtio_backend::{Backend, Kind, Owner, Reach, Record, reach};
use virtio_mmio::{InterruptLine, Transport};
use virtio_vsock::{Config, Vsock};

pub const CID: u64 = 42;
pub const HOST: u64 = 2;
pub const STREAM: u16 = 1;

/// VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET and VIRTIO_VSOCK_F_STREAM.
pub const FEATURES: u64 = 1 << 32 | 1 << 40 | 1;

/// VIRTIO_VSOCK_OP_*
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// How long a test waits for what must happen before it calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a header.
pub const HEADER: usize = 44;

/// Guest memory: three queues, then the driver's packets, then its receive buffers.
const BASE: u64 = 0x4000_0000;
const MEMORY: u64 = 16 << 20;
const QUEUE: u64 = 0x1_0000;
pub const TX_DATA: u64 = BASE + (1 << 20);
pub const RX_DATA: u64 = BASE + (4 << 20);
pub const EVENT_DATA: u64 = BASE + (8 << 20);

/// Entries of the queues as this driver has them.
pub const RX_ENTRIES: u16 = 64;

/// The driver polls.
pub struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A packet, either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub data: Vec<u8>,
}

impl Packet {
    /// From port `guest` of the guest to port `host` of the host, with room for a lot.
    pub fn new(op: u16, guest: u32, host: u32) -> Self {
        Self {
            src_cid: CID,
            dst_cid: HOST,
            src_port: guest,
            dst_port: host,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
            data: Vec::new(),
        }
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self.len = data.len() as u32;
        self
    }

    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    pub fn credit(mut self, buf_alloc: u32, fwd_cnt: u32) -> Self {
        (self.buf_alloc, self.fwd_cnt) = (buf_alloc, fwd_cnt);
        self
    }

    /// The answer to a packet of the host's.
    pub fn answer(&self, op: u16) -> Self {
        Self::new(op, self.dst_port, self.src_port)
    }

    pub fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.header(), self.data.clone()].concat()
    }

    fn parse(bytes: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            data: bytes[HEADER..].to_vec(),
        }
    }
}

/// A guest with its socket device.
pub struct Guest {
    pub memory: FakeForeignMemory,
    pub transport: Arc<Transport>,
    pub device: Arc<dyn Backend>,
    record: Record,
    /// What the device is made of, for the process that follows.
    listener: OwnedFd,
    pub rx: RawQueue,
    pub tx: RawQueue,
    pub event: RawQueue,
    pub socket: PathBuf,
    /// Receive buffers, each by its chain's head.
    buffers: Vec<Vec<Descriptor>>,
    rx_seen: u16,
    _folder: TempDir,
}

impl Guest {
    /// With receive buffers of 4 KiB in all entries.
    pub fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.offer_usual_buffers();
        guest
    }

    pub fn without_buffers() -> Self {
        Self::made(reach::directly::<Vsock>)
    }

    /// One whose device asks this for connections to the host.
    pub fn asking(reach: Arc<dyn Reach>) -> Self {
        let mut guest = Self::made(|_config| reach);
        guest.offer_usual_buffers();
        guest
    }

    fn made(reach: impl FnOnce(&Config) -> Arc<dyn Reach>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, listener) = opened(folder.path());
        let reach = reach(&config);
        let memory = FakeForeignMemory::new(&[(BASE, MEMORY)]);
        let record = Record::new().unwrap();
        let (device, transport) = serve(&config, reach, &listener, &memory, &record);
        let socket = config.socket.unwrap();
        let [rx, tx, event] = [(0, RX_ENTRIES), (1, RX_ENTRIES), (2, 4)]
            .map(|(index, entries)| RawQueue::new(memory.clone(), BASE + index * QUEUE, entries));
        let (buffers, rx_seen) = (Vec::new(), 0);
        let guest = Self {
            memory,
            transport,
            device,
            record,
            listener,
            rx,
            tx,
            event,
            socket,
            buffers,
            rx_seen,
            _folder: folder,
        };
        guest.bring_up();
        guest
    }

    fn bring_up(&self) {
        assert!(self.transport.negotiate(FEATURES));
        for (index, queue) in [(0, &self.rx), (1, &self.tx), (2, &self.event)] {
            self.transport.set_up_queue(index, queue);
        }
        self.transport.add_status(status::DRIVER_OK);
    }

    /// The process is killed, and another one goes on with the device.
    pub fn kill(&mut self) {
        // Of a process that is killed nothing is given back any more.
        let (record, mut queues) = (left_behind(&self.record), vec![0; 3 * QUEUE as usize]);
        self.memory.read(BASE, &mut queues);
        let (ended, end) = mpsc::channel();
        self.transport.stop().then(move || ended.send(()).unwrap());
        end.recv_timeout(PATIENCE).expect("the end of the old process");
        self.memory.write(BASE, &queues);
        let config = Config { cid: CID, socket: Some(self.socket.clone()) };
        let reach = reach::directly::<Vsock>(&config);
        (self.device, self.transport) = serve(&config, reach, &self.listener, &self.memory, &record);
        self.record = record;
    }

    /// The driver gives a buffer for events, in this descriptor.
    pub fn offer_event_buffer(&self, head: u16, len: u32) {
        self.event.write_chain(head, &[Descriptor::writable(EVENT_DATA + 16 * u64::from(head), len)]);
        self.event.publish(head);
        self.transport.notify(2);
    }

    /// The driver takes a device that was reset into use.
    pub fn start(&mut self) {
        self.rx.clear();
        self.tx.clear();
        self.event.clear();
        self.forget_buffers();
        self.bring_up();
        self.offer_usual_buffers();
    }

    /// The driver has set up its receive queue anew, which is empty.
    pub fn forget_buffers(&mut self) {
        (self.rx_seen, self.buffers) = (0, Vec::new());
    }

    pub fn offer_usual_buffers(&mut self) {
        let buffers = (0..u64::from(RX_ENTRIES)).map(|entry| vec![Descriptor::writable(RX_DATA + 4096 * entry, 4096)]);
        self.offer_buffers(buffers.collect());
    }

    /// Gives the device buffers to fill, for the first time; each is made of some descriptors.
    pub fn offer_buffers(&mut self, buffers: Vec<Vec<Descriptor>>) {
        let mut head = 0;
        for chain in buffers {
            self.buffers.resize(usize::from(head), Vec::new());
            self.rx.write_chain(head, &chain);
            self.rx.publish(head);
            head += chain.len() as u16;
            self.buffers.push(chain);
        }
        self.transport.notify(0);
    }

    /// Offers one more buffer; it is the `count`th in all.
    pub fn offer_one(&mut self, count: u16, buffer: Descriptor) {
        self.rx.write_chain(count - 1, &[buffer]);
        self.rx.publish(count - 1);
        self.transport.notify(0);
    }

    /// Whether the lane makes no pass in a time in which one that spins makes many.
    pub fn is_idle(&self) -> bool {
        self.assert_alive();
        let passes = || self.transport.counters().iter().find(|(name, _)| *name == "passes").unwrap().1;
        let before = passes();
        thread::sleep(Duration::from_millis(20));
        passes() == before
    }

    /// Sends a chain of buffers, and waits until the device has taken it.
    pub fn send_chain(&self, chain: &[Descriptor]) {
        let used = self.tx.used_idx();
        self.tx.write_chain(0, chain);
        self.tx.publish(0);
        self.transport.notify(1);
        self.tx.wait_used(used.wrapping_add(1));
    }

    /// Sends a packet, and waits until the device has taken it.
    pub fn send(&self, packet: &Packet) {
        let bytes = packet.bytes();
        self.memory.write(TX_DATA, &bytes);
        self.send_chain(&[Descriptor::readable(TX_DATA, bytes.len() as u32)]);
    }

    /// Sends packets without data, as many at a time as the queue takes; `after` runs after each lot.
    pub fn send_many(&mut self, packets: impl Iterator<Item = Packet>, mut after: impl FnMut(&mut Self)) {
        let mut packets = packets.peekable();
        while packets.peek().is_some() {
            let used = self.tx.used_idx();
            let mut count = 0;
            for packet in packets.by_ref().take(usize::from(RX_ENTRIES)) {
                let address = TX_DATA + 64 * u64::from(count);
                self.memory.write(address, &packet.header());
                self.tx.write_chain(count, &[Descriptor::readable(address, HEADER as u32)]);
                self.tx.publish(count);
                count += 1;
            }
            self.transport.notify(1);
            self.tx.wait_used(used.wrapping_add(count));
            after(self);
        }
    }

    /// The next packet from the device, if there is one.
    pub fn try_recv(&mut self) -> Option<Packet> {
        if self.rx.used_idx() == self.rx_seen {
            return None;
        }
        let used = self.rx.used(self.rx_seen);
        self.rx_seen = self.rx_seen.wrapping_add(1);
        let mut bytes = Vec::new();
        for descriptor in &self.buffers[used.id as usize] {
            let mut part = vec![0; (descriptor.len as usize).min(used.len as usize - bytes.len())];
            self.memory.read(descriptor.addr, &mut part);
            bytes.extend(part);
        }
        self.rx.publish(used.id as u16);
        self.transport.notify(0);
        let packet = Packet::parse(&bytes);
        assert_eq!(packet.len as usize, packet.data.len(), "length in the header and of the packet");
        assert_eq!(packet.dst_cid, CID);
        Some(packet)
    }

    /// The next packet from the device.
    pub fn recv(&mut self) -> Packet {
        let mut next = None;
        let device = Arc::clone(&self.device);
        wait_for(
            || {
                next = self.try_recv();
                self.assert_alive();
                next.is_some()
            },
            || format!("a packet; {:?}", device.counters()),
        );
        next.unwrap()
    }

    /// The last packet that has come, after the first that comes: all are of one stream, and say the same of credit.
    pub fn expect_any(&mut self) -> Packet {
        let mut last = self.recv();
        while let Some(packet) = self.try_recv() {
            last = packet;
        }
        last
    }

    /// The next packet, which must be of this kind; packets that only give credit are passed over.
    pub fn expect(&mut self, op: u16) -> Packet {
        loop {
            let packet = self.recv();
            if packet.op == op {
                return packet;
            }
            assert_eq!(packet.op, op::CREDIT_UPDATE, "waiting for {op}: {packet:?}");
        }
    }

    /// Nothing comes: the device has taken what it was sent, and answers twice something else. Two answers, as the first
    /// may come before what was to come.
    pub fn expect_nothing(&mut self) {
        for port in [0xdead_0001, 0xdead_0002] {
            self.send(&Packet::new(op::RW, 0xdead_0000, port));
            let next = self.recv();
            assert_eq!((next.op, next.src_port), (op::RST, port), "nothing should come: {next:?}");
        }
    }

    /// A connection from the guest to a program that listens on the host; both ends.
    pub fn connect(&mut self, guest: u32, listener: &(u32, UnixListener)) -> UnixStream {
        self.send(&Packet::new(op::REQUEST, guest, listener.0));
        let response = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (listener.0, guest));
        listener.1.accept().unwrap().0
    }

    /// A program on the host that listens at `port`.
    pub fn listen(&self, port: u32) -> (u32, UnixListener) {
        (port, UnixListener::bind(self.place_of(port)).unwrap())
    }

    pub fn place_of(&self, port: u32) -> PathBuf {
        format!("{}_{port}", self.socket.display()).into()
    }

    /// A program on the host that says these bytes to the device.
    pub fn dial(&self, greeting: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(greeting).unwrap();
        stream
    }

    /// A connection from the host to `port` of the guest, which accepts: the host's end, and the packet that asked.
    pub fn accept(&mut self, port: u32) -> (UnixStream, Packet) {
        let stream = self.dial(format!("CONNECT {port}\n").as_bytes());
        let request = self.expect(op::REQUEST);
        assert_eq!((request.dst_port, request.src_cid), (port, HOST));
        self.send(&request.answer(op::RESPONSE));
        assert_eq!(read_line(&stream), format!("OK {}\n", request.src_port));
        (stream, request)
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.device.counters().iter().find(|(other, _)| *other == name).unwrap().1
    }

    /// Waits until a counter has at least this value.
    pub fn wait_counter(&self, name: &str, value: u64) {
        wait_for(|| self.counter(name) >= value, || format!("{name} {value}, has {:?}", self.device.counters()));
    }

    pub fn assert_alive(&self) {
        assert_eq!(self.transport.status() & status::DEVICE_NEEDS_RESET, 0, "the device needs a reset");
    }
}

/// Opens the device in a folder, as the program does.
pub fn open(folder: &Path) -> (Arc<dyn Backend>, PathBuf) {
    let (config, listener) = opened(folder);
    (make(&config, listener, reach::directly::<Vsock>(&config)), config.socket.unwrap())
}

fn make(config: &Config, listener: OwnedFd, reach: Arc<dyn Reach>) -> Arc<dyn Backend> {
    Vsock::make(config, vec![listener], reach).unwrap()
}

fn opened(folder: &Path) -> (Config, OwnedFd) {
    let mut config = Config { cid: CID, ..Config::default() };
    let mut descriptors = Vsock::open(&mut config, &owner(folder)).unwrap();
    (config, descriptors.remove(0))
}

/// Serves the device as a process does that is handed all this.
fn serve(
    config: &Config,
    reach: Arc<dyn Reach>,
    listener: &OwnedFd,
    memory: &FakeForeignMemory,
    record: &Record,
) -> (Arc<dyn Backend>, Arc<Transport>) {
    let device = make(config, listener.try_clone().unwrap(), reach);
    let cache = MapCache::new(memory.clone(), Budget::default());
    let transport = Transport::recorded(Arc::clone(&device), Arc::new(NoLine), cache, "vsock", record.clone());
    (device, transport.unwrap())
}

pub fn owner(folder: &Path) -> Owner {
    Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: folder.to_owned() }
}

/// Reads a line and not a byte more; none at the end of a connection, whose other end may not have read everything.
pub fn read_line(stream: &UnixStream) -> String {
    let mut line = String::new();
    match BufReader::with_capacity(1, stream).read_line(&mut line) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        outcome => drop(outcome.unwrap()),
    }
    line
}

/// Waits for a condition, of which nothing tells: at first in short steps, then without taking a CPU from others.
pub fn wait_for(mut condition: impl FnMut() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    for step in 0u32.. {
        if condition() {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for {}", what());
        if step < 1000 { thread::yield_now() } else { thread::sleep(Duration::from_millis(1)) }
    }
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ (at >> 16) as u8 ^ seed).collect()
}

/// Descriptors for tests with many connections.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let enough = limit.maximum.is_none_or(|most| most >= 8192);
    assert!(enough, "this test needs 8192 descriptors; raise the hard limit (ulimit -Hn)");
}
