//! What the tests stand on: a guest's memory, one queue, and a disk over a temporary file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use guest_memory::{Budget, MapCache, MapError, Mapping, PageSource, Sources};
use tempfile::TempDir;
use testkit::driver::{Descriptor, Lender, RawQueue, Used, Way};
use testkit::grants::FakeGrants;
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Counters, Fault, Lane, LaneSetup, QueueSetup, Record, RingPosition, RingSetup, Signals};
use virtio_disk::engine::{Target, Uring};
use virtio_disk::{Cache, Config, Disk, EngineKind, Image};
use vmm_sys_util::eventfd::EventFd;

/// Request types (virtio 1.2 §5.2.6).
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// VIRTIO_BLK_F_FLUSH.
pub const F_FLUSH: u64 = 1 << 9;

pub const SECTOR: usize = 512;

/// Guest memory: the queue, then headers and statuses, then data.
pub const BASE: u64 = 0x4000_0000;
const MEMORY: u64 = 48 << 20;
pub const HEADERS: u64 = BASE + (1 << 20);
pub const DATA: u64 = BASE + (2 << 20);

/// What the status byte is before the device writes it.
pub const UNTOUCHED: u8 = 0xee;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs each test on both engines, the second where the host has it.
#[macro_export]
macro_rules! on_each_engine {
    ($($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block)+) => {
        $($(#[$meta])* mod $name {
            #[allow(unused_imports, reason = "not every test needs all")]
            use super::*;

            fn run($engine: virtio_disk::EngineKind) $body

            #[test]
            fn plain() {
                run(virtio_disk::EngineKind::Plain);
            }

            #[test]
            fn io_uring() {
                if $crate::harness::has_io_uring() {
                    run(virtio_disk::EngineKind::IoUring);
                }
            }
        })+
    };
}

pub fn has_io_uring() -> bool {
    let file = Arc::new(File::open("/dev/null").unwrap());
    let outcome = Uring::new(Target { file, is_block_device: false, direct_alignment: None, turn: None }, 1);
    if let Err(error) = &outcome {
        eprintln!("skipped: this host has no io_uring ({error})");
    }
    outcome.is_ok()
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    /// What the used ring says was written.
    pub written: u32,
    /// The data buffer, as it is afterwards.
    pub data: Vec<u8>,
}

/// Hears what a lane says.
#[derive(Default)]
pub struct Hearing {
    fault: Mutex<Option<String>>,
    heard: Condvar,
}

impl Signals for Hearing {
    fn used(&self, _queues: &[usize]) {}

    fn config_changed(&self) {}

    fn needs_reset(&self, fault: &Fault) {
        *self.fault.lock().unwrap() = Some(format!("{fault:?}"));
        self.heard.notify_all();
    }
}

impl Hearing {
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap().clone()
    }

    /// Waits for the device to need a reset.
    pub fn wait_for_fault(&self) -> String {
        let fault = self.fault.lock().unwrap();
        let (fault, timeout) = self.heard.wait_timeout_while(fault, PATIENCE, |fault| fault.is_none()).unwrap();
        assert!(!timeout.timed_out(), "the device should need a reset, and does not");
        fault.clone().unwrap()
    }
}

/// How a disk reaches its guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As any device does; the kernel cannot pin frames.
    By(Way),
    /// By frames that the kernel can pin, as a vhost-user front-end's.
    PinnableFrames,
}

impl Reach {
    /// Each of them.
    pub const ALL: [Self; 4] =
        [Self::By(Way::Frames), Self::By(Way::Grants), Self::By(Way::Mixed), Self::PinnableFrames];

    fn of(self, memory: &FakeForeignMemory) -> (Lender, Sources) {
        match self {
            Self::By(way) => {
                let lender = Lender::new(way, memory.clone());
                let sources = lender.sources();
                (lender, sources)
            }
            Self::PinnableFrames => (Lender::new(Way::Frames, memory.clone()), Pinnable(memory.clone()).into()),
        }
    }
}

/// The fake's memory, which the kernel can pin; that of another guest under a hypervisor it could not.
struct Pinnable(FakeForeignMemory);

impl PageSource for Pinnable {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        self.0.map(frames)
    }

    fn direct_io_capable(&self) -> bool {
        true
    }
}

/// A disk to be made.
pub struct Builder {
    pub config: Config,
    pub contents: Vec<u8>,
    pub features: u64,
    pub event_idx: bool,
    pub reach: Reach,
    pub queue_size: u16,
    pub position: u16,
    pub lane: usize,
    pub folder: TempDir,
    /// Where the disk keeps what a process that follows needs.
    pub record: Option<Record>,
    /// Memory in which a driver uses the disk that a former process has left.
    pub left: Option<FakeForeignMemory>,
}

impl Builder {
    pub fn new(engine: EngineKind) -> Self {
        Self {
            config: Config { engine, ..Config::default() },
            contents: pattern(256 * SECTOR, 1),
            features: F_FLUSH,
            event_idx: false,
            reach: Reach::By(Way::Frames),
            queue_size: 256,
            position: 0,
            lane: 0,
            folder: tempfile::tempdir().unwrap(),
            record: None,
            left: None,
        }
    }

    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn contents(mut self, contents: Vec<u8>) -> Self {
        self.contents = contents;
        self
    }

    pub fn features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    pub fn record(mut self, record: &Record) -> Self {
        self.record = Some(record.clone());
        self
    }

    /// In the place of a process that has left its driver alone.
    pub fn following(mut self, memory: &FakeForeignMemory) -> Self {
        self.left = Some(memory.clone());
        self
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    pub fn lane(mut self, lane: usize) -> Self {
        self.lane = lane;
        self
    }

    pub fn start(self) -> Rig {
        fs::write(self.path(), &self.contents).unwrap();
        let image = Image::open(&self.path(), self.config.access()).unwrap();
        self.start_over(image)
    }

    pub fn start_over(self, image: Image) -> Rig {
        let disk: Arc<dyn Backend> = Arc::new(Disk::new(&self.config, image).unwrap());
        self.start_device(disk)
    }

    /// A lane of any device that takes a disk's requests.
    pub fn start_device(self, disk: Arc<dyn Backend>) -> Rig {
        let memory = self.left.clone().unwrap_or_else(|| FakeForeignMemory::new(&[(BASE, MEMORY)]));
        let (lender, sources) = self.reach.of(&memory);
        let cache = MapCache::new(sources, Budget::default());
        let queue = RawQueue::new(memory.clone(), BASE, self.queue_size);
        if self.left.is_none() {
            queue.set_avail_idx(self.position);
            memory.store(queue.used_ring() + 2, self.position);
        }
        if let Some(record) = &self.record {
            disk.keep(record);
        }
        if self.left.is_none() {
            disk.negotiated(self.features);
        }
        let queue = lender.lend_queue(queue);
        let (ended, positions) = mpsc::channel();
        let rig = Rig {
            lane: None,
            index: self.lane,
            position: self.position,
            event_idx: self.event_idx,
            features: self.features,
            record: self.record.clone(),
            kick: Arc::new(EventFd::new(0).unwrap()),
            hearing: Arc::default(),
            counters: Arc::default(),
            path: self.path(),
            _folder: self.folder,
            lender,
            cache,
            memory,
            queue,
            disk,
            ended,
            positions,
        };
        rig.with_lane()
    }
}

/// A disk at work. Dropping it resets the device and waits for that.
pub struct Rig {
    pub memory: FakeForeignMemory,
    pub lender: Lender,
    pub queue: RawQueue,
    pub cache: Arc<MapCache>,
    pub hearing: Arc<Hearing>,
    pub counters: Arc<Counters>,
    pub disk: Arc<dyn Backend>,
    pub path: PathBuf,
    pub kick: Arc<EventFd>,
    lane: Option<Lane>,
    index: usize,
    position: u16,
    event_idx: bool,
    features: u64,
    record: Option<Record>,
    ended: mpsc::Sender<Vec<RingPosition>>,
    positions: mpsc::Receiver<Vec<RingPosition>>,
    _folder: TempDir,
}

impl Rig {
    pub fn new(engine: EngineKind) -> Self {
        Builder::new(engine).start()
    }

    fn with_lane(mut self) -> Self {
        let setup = RingSetup {
            size: self.queue.size(),
            max_size: self.disk.identity().queue_sizes[0],
            desc_table: self.queue.desc_table(),
            avail_ring: self.queue.avail_ring(),
            used_ring: self.queue.used_ring(),
            event_idx: self.event_idx,
            position: RingPosition { next_avail: self.position, next_used: self.position },
            max_chain_bytes: self.disk.identity().max_chain_bytes,
        };
        let ended = self.ended.clone();
        let ledgers = self.record.as_ref().and_then(|record| record.ledgers(&self.disk.identity().queue_sizes));
        let lane = Lane::spawn(LaneSetup {
            name: "disk".into(),
            backend: Arc::clone(&self.disk),
            index: self.index,
            features: self.features,
            cache: Arc::clone(&self.cache),
            queues: vec![Some(QueueSetup {
                ring: setup,
                ledger: ledgers.into_iter().flatten().nth(self.index),
                kick: self.kick.clone(),
            })],
            signals: Arc::clone(&self.hearing) as Arc<dyn Signals>,
            counters: Arc::clone(&self.counters),
            ended: Box::new(move |positions| drop(ended.send(positions))),
        });
        self.lane = Some(lane.unwrap());
        self
    }

    /// Stops the lane, finishing what is in flight. Returns how far the queue was worked.
    pub fn stop(&mut self) -> Option<RingPosition> {
        drop(self.lane.take()?);
        let positions = self.positions.recv_timeout(PATIENCE).expect("the lane hangs");
        positions.first().copied()
    }

    /// The driver resets the device and starts anew.
    pub fn reset(mut self) -> Self {
        self.stop();
        self.queue.clear();
        self.position = 0;
        self.hearing = Arc::default();
        self.disk.negotiated(self.features);
        let ledgers = self.record.iter().flat_map(|record| record.ledgers(&self.disk.identity().queue_sizes));
        ledgers.flatten().for_each(|ledger| ledger.clear());
        self.with_lane()
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Writes a header for chain `head`; returns its guest address.
    pub fn header(&self, head: u16, kind: u32, sector: u64) -> u64 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let address = HEADERS + 64 * u64::from(head);
        self.memory.write(address, &header);
        address
    }

    /// Guest address of chain `head`'s status byte, reset to [`UNTOUCHED`].
    pub fn status_byte(&self, head: u16) -> u64 {
        let address = HEADERS + 64 * u64::from(head) + 32;
        self.memory.write(address, &[UNTOUCHED]);
        address
    }

    pub fn status(&self, head: u16) -> u8 {
        let mut status = [0];
        self.memory.read(HEADERS + 64 * u64::from(head) + 32, &mut status);
        status[0]
    }

    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes);
        bytes
    }

    /// Publishes a chain without a kick. Returns it as the disk sees it.
    pub fn offer(&self, head: u16, chain: &[Descriptor]) -> Vec<Descriptor> {
        let chain: Vec<_> = chain.iter().map(|buffer| self.lender.lend_buffer(*buffer)).collect();
        self.queue.write_chain(head, &chain);
        self.queue.publish(head);
        chain
    }

    /// The guest's grant table.
    pub fn grants(&self) -> &FakeGrants {
        self.lender.grants()
    }

    /// Offers a chain, kicks, and waits for it to come back.
    pub fn run(&self, chain: &[Descriptor]) -> Used {
        let before = self.queue.used_idx();
        let lent = self.offer(0, chain);
        self.kick();
        let used = self.queue.wait_used(before.wrapping_add(1));
        self.lender.take_back_buffers(&lent);
        used
    }

    /// A request with `len` bytes of data at [`DATA`], in one buffer.
    fn request(&self, kind: u32, sector: u64, data: Option<Descriptor>) -> Outcome {
        let mut chain = vec![Descriptor::readable(self.header(0, kind, sector), 16)];
        chain.extend(data);
        chain.push(Descriptor::writable(self.status_byte(0), 1));
        let used = self.run(&chain);
        let data = data.map_or(Vec::new(), |data| self.bytes(data.addr, data.len as usize));
        Outcome { status: self.status(0), written: used.len, data }
    }

    /// A request that the device answers into `len` bytes, which are 0xaa before.
    pub fn get(&self, kind: u32, sector: u64, len: usize) -> Outcome {
        self.memory.write(DATA, &vec![0xaa; len]);
        self.request(kind, sector, Some(Descriptor::writable(DATA, len as u32)))
    }

    /// A request with `data` for the device. Returns its status.
    pub fn put(&self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.memory.write(DATA, data);
        self.request(kind, sector, Some(Descriptor::readable(DATA, data.len() as u32))).status
    }

    pub fn read(&self, sector: u64, sectors: usize) -> Outcome {
        self.get(kind::IN, sector, sectors * SECTOR)
    }

    pub fn write(&self, sector: u64, data: &[u8]) -> u8 {
        self.put(kind::OUT, sector, data)
    }

    pub fn flush(&self) -> u8 {
        self.request(kind::FLUSH, 0, None).status
    }

    pub fn on_disk(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.disk.counters().iter().find(|(other, _)| *other == name).unwrap().1
    }

    /// The device works as if nothing had been.
    pub fn assert_alive(&self) {
        assert_eq!(self.hearing.fault(), None);
        assert_eq!(self.get(kind::GET_ID, 0, 20).status, OK);
        assert_eq!(self.read(0, 1).status, OK);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at / SECTOR) as u8 ^ seed).collect()
}

/// A discard or write-zeroes segment.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// An image with O_DIRECT in a temporary folder, or `None`, said aloud, where the file system has none.
pub fn direct_image(builder: &Builder) -> Option<Image> {
    fs::write(builder.path(), &builder.contents).unwrap();
    assert_eq!(builder.config.cache, Cache::None);
    open_or_skip(&builder.path(), &builder.config)
}

fn open_or_skip(path: &Path, config: &Config) -> Option<Image> {
    match Image::open(path, config.access()) {
        Err(virtio_disk::ImageError::NoDirect { .. }) => {
            eprintln!("skipped: no direct I/O in {}", path.display());
            None
        }
        image => Some(image.unwrap()),
    }
}
