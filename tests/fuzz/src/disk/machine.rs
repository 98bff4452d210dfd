//! A disk at work on the calling thread, and its driver.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use guest_memory::MapCache;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use virtio_backend::{Backend, ConfigSpace, Fault, Ring, RingPosition, RingSetup, Wake, Worker, features};
use virtio_disk::{Cache as CacheMode, Config, Disk, EngineKind, Image};

use crate::disk::judge::{self, Honest, Pass};
use crate::disk::memory::{AVAILABLE, DATA, DESCRIPTORS, QUEUE, SIZE, TABLES, USED, publish, table};
use crate::disk::moves::{Cache, Kind, Len, Move, Request, Sector, Setting};
use crate::guest::{BASE, INDIRECT, Memory, NEXT, Raw, WRITE};

/// Sectors of the disk.
pub(crate) const CAPACITY: u64 = 128;
pub(crate) const SECTOR: usize = 512;

/// VIRTIO_BLK_F_BLK_SIZE.
const BLK_SIZE: u64 = 1 << 6;

/// How often a pass looks for what has ended, each time for up to [`WAIT`], before it calls that a hang.
const LOOKS: usize = 2000;
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A disk, its guest's memory, and what the driver has under way.
pub(crate) struct Machine {
    memory: Memory,
    cache: Arc<MapCache>,
    running: Option<Running>,
    disk: Arc<Disk>,
    config: ConfigSpace,
    image: PathBuf,
    /// The driver's index up to which the device was told.
    told: u16,
    /// Honest requests that the device was not told of.
    honest: Vec<Honest>,
    /// Since the last reset, the driver has made none but honest requests.
    is_honest: bool,
    /// The next free descriptor, and the next free byte of memory.
    slot: u16,
    free: usize,
    _folder: TempDir,
}

/// A device that was started.
struct Running {
    worker: Box<dyn Worker>,
    rings: [Ring; 1],
}

impl Machine {
    pub(crate) fn new(setting: Setting) -> Self {
        let folder = match setting.cache {
            Cache::Direct => tempfile::tempdir(),
            // Where a flush costs nothing.
            Cache::Writeback | Cache::Writethrough => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
        };
        let folder = folder.expect("a temporary folder");
        let image = folder.path().join("disk.img");
        let contents: Vec<u8> = (0..CAPACITY as usize * SECTOR).map(|at| ((at / 7) ^ (at / SECTOR)) as u8).collect();
        std::fs::write(&image, contents).expect("the image can be written");
        let config = Config {
            queues: Some(1),
            engine: if setting.io_uring { EngineKind::IoUring } else { EngineKind::Plain },
            read_only: setting.read_only,
            discard: setting.discard,
            ..Config::default()
        };
        let cache = match setting.cache {
            Cache::Writeback => CacheMode::Writeback,
            Cache::Writethrough => CacheMode::Writethrough,
            Cache::Direct => CacheMode::None,
        };
        let make = |cache| -> Option<Disk> {
            let config = Config { cache, ..config.clone() };
            Disk::new(&config, Image::open(&image, config.access()).ok()?).ok()
        };
        // Not every file system has direct I/O.
        let disk = make(cache).or_else(|| make(CacheMode::Writeback)).expect("a plain image can be served");
        let disk = Arc::new(disk);
        let (memory, cache) = Memory::new(SIZE);
        // Nothing that a device writes is what was there.
        memory.write(DATA, &[0xee; SIZE - DATA]);
        let config = ConfigSpace::new(Arc::clone(&disk) as Arc<dyn Backend>);
        let mut machine = Self {
            memory,
            cache,
            running: None,
            disk,
            config,
            image,
            told: 0,
            honest: Vec::new(),
            is_honest: true,
            slot: 0,
            free: DATA,
            _folder: folder,
        };
        machine.reset(setting.features, setting.event_idx);
        machine
    }

    pub(crate) fn make(&mut self, next: Move) {
        self.is_honest &= matches!(
            next,
            Move::Request(_) | Move::Kick | Move::WriteConfig { .. } | Move::ReadConfig { .. } | Move::Reset { .. }
        );
        match next {
            Move::Request(request) => self.request(request),
            Move::Descriptor { slot, descriptor } => {
                self.memory.put(DESCRIPTORS + 16 * usize::from(slot % QUEUE as u8), descriptor.raw());
            }
            Move::Indirect { table: number, slot, descriptor } => {
                self.memory.put(table(number) + 16 * usize::from(slot % 32), descriptor.raw());
            }
            Move::Publish { head } => publish(&self.memory, u16::from(head % (QUEUE as u8 + 2))),
            Move::Jump { by } => {
                let index = self.memory.u16_at(AVAILABLE + 2).wrapping_add(by);
                self.memory.write(AVAILABLE + 2, &index.to_le_bytes());
            }
            Move::Scribble { at, value } => self.memory.write(at as usize % SIZE, &value.to_le_bytes()),
            Move::Kick => self.kick(),
            Move::WriteConfig { offset, data, len } => {
                self.config.write(offset.into(), &data[..usize::from(len % 9)]).expect("no panic");
            }
            Move::ReadConfig { offset, len } => {
                self.config.read(offset.into(), &mut vec![0xee; len.into()]).expect("no panic");
            }
            Move::Reset { features, event_idx } => self.reset(features, event_idx),
        }
    }

    /// The device is told of what is left, and then it is reset.
    pub(crate) fn end(&mut self) {
        self.kick();
        self.stop();
    }

    /// What was made available is finished or given up, and the device starts anew.
    fn reset(&mut self, wanted: u64, event_idx: bool) {
        self.stop();
        let offered = features::offered(self.disk.identity().features);
        let mut accepted = wanted & offered | features::VERSION_1;
        if !self.disk.accepts(accepted) {
            accepted |= BLK_SIZE;
        }
        assert!(features::are_acceptable(accepted, offered) && self.disk.accepts(accepted));
        self.memory.write(0, &[0; TABLES]);
        let setup = RingSetup {
            size: QUEUE,
            max_size: self.disk.identity().queue_sizes[0],
            desc_table: BASE + DESCRIPTORS as u64,
            avail_ring: BASE + AVAILABLE as u64,
            used_ring: BASE + USED as u64,
            event_idx,
            position: RingPosition::default(),
            max_chain_bytes: self.disk.identity().max_chain_bytes,
        };
        self.disk.negotiated(accepted);
        let worker = self.disk.start(0, accepted).expect("an engine is to be had");
        self.running = Some(Running { worker, rings: [Ring::new(&setup, &self.cache).expect("a sound queue")] });
        (self.told, self.is_honest) = (0, true);
        self.forget();
    }

    fn stop(&mut self) {
        if let Some(Running { mut worker, mut rings }) = self.running.take() {
            let drained = worker.drain(&mut rings).and_then(|()| rings[0].publish());
            assert!(!matches!(drained, Err(Fault::Bug(_))), "{drained:?}");
        }
    }

    /// What was under way is over.
    fn forget(&mut self) {
        self.honest.clear();
        (self.slot, self.free) = (0, DATA);
    }

    /// Puts an honest request into the queue, if there is room for it.
    fn request(&mut self, request: Request) {
        let len = match (request.kind, request.len) {
            (Kind::Flush, _) => 0,
            (Kind::GetId, _) => 20,
            (Kind::Discard | Kind::WriteZeroes, _) => 16,
            (_, Len::Sectors(count)) => usize::from(count % 12) * SECTOR,
            (_, Len::Bytes(bytes)) => usize::from(bytes % 3000),
        };
        let sector = match request.sector {
            Sector::Within(sector) => u64::from(sector) % (CAPACITY + 4),
            Sector::Any(sector) => sector,
        };
        let (header, data) = (self.free, self.free + 32);
        let status = data + len + 16;
        let sectors = match request.len {
            Len::Sectors(count) => u32::from(count),
            Len::Bytes(bytes) => u32::from(bytes) << 16,
        };
        let mut head = [0; 16];
        head[..4].copy_from_slice(&request.kind.number().to_le_bytes());
        head[8..].copy_from_slice(&sector.to_le_bytes());
        let is_read = matches!(request.kind, Kind::In | Kind::GetId);
        let mut parts = cut(header, 16, request.cuts % 3, 0);
        parts.extend(cut(data, len, request.cuts / 3 % 5, if is_read { WRITE } else { 0 }));
        parts.push((status, 1, WRITE));
        let slots = if request.indirect { 1 } else { parts.len() as u16 };
        if self.running.is_none() || self.slot + slots > QUEUE || status + 16 > SIZE || self.honest.len() >= 4 {
            return;
        }
        self.memory.write(header, &head);
        match request.kind {
            Kind::Discard | Kind::WriteZeroes => {
                let mut segment = [0; 16];
                segment[..8].copy_from_slice(&sector.to_le_bytes());
                segment[8..12].copy_from_slice(&sectors.to_le_bytes());
                segment[12] = request.flags;
                self.memory.write(data, &segment);
            }
            Kind::Out => self.memory.write(data, &(0..len).map(|at| (at * 5 + status) as u8).collect::<Vec<_>>()),
            _ => self.memory.write(data, &vec![0xee; len]),
        }
        self.memory.write(status, &[0xee]);
        let place = if request.indirect { table(self.honest.len() as u8) } else { 16 * usize::from(self.slot) };
        let first = if request.indirect { 0 } else { self.slot };
        self.chain(place, first, &parts);
        if request.indirect {
            let table = Raw { addr: BASE + place as u64, len: 16 * parts.len() as u32, flags: INDIRECT, next: 0 };
            self.memory.put(DESCRIPTORS + 16 * usize::from(self.slot), table);
        }
        publish(&self.memory, self.slot);
        let flags = request.flags;
        self.honest.push(Honest { head: self.slot, kind: request.kind, sector, sectors, data, len, status, flags });
        self.slot += slots;
        self.free = (status + 16).next_multiple_of(64);
        if request.kick {
            self.kick();
        }
    }

    /// Writes a chain at an offset, the first of whose descriptors has number `first`.
    fn chain(&self, place: usize, first: u16, parts: &[(usize, usize, u16)]) {
        for (number, &(at, len, flags)) in parts.iter().enumerate() {
            let next = first + number as u16 + 1;
            let flags = if number + 1 < parts.len() { flags | NEXT } else { flags };
            let raw = Raw { addr: BASE + at as u64, len: len as u32, flags, next };
            self.memory.put(place + 16 * number, raw);
        }
    }

    /// Tells the device, waits until it has done all that it takes, and judges it.
    fn kick(&mut self) {
        let Some(running) = &mut self.running else { return };
        let before = (self.memory.snapshot(), contents(&self.image));
        let told = self.told;
        self.told = self.memory.u16_at(AVAILABLE + 2);
        let outcome = running.work(&self.memory);
        if outcome.is_err() {
            // Dropped, it waits for the kernel.
            self.running = None;
        }
        judge::judge(&Pass {
            before,
            after: (self.memory.snapshot(), contents(&self.image)),
            told,
            honest: self.is_honest.then_some(&self.honest[..]),
            fault: outcome.err(),
            plan: self.disk.plan(),
        });
        self.forget();
    }
}

impl Running {
    fn work(&mut self, memory: &Memory) -> Result<(), Fault> {
        let Self { worker, rings } = self;
        for _ in 0..LOOKS {
            worker.work(Wake::Queue(0), rings)?;
            rings[0].publish()?;
            if rings[0].in_flight() == 0 && rings[0].position().next_avail == memory.u16_at(AVAILABLE + 2) {
                return Ok(());
            }
            for source in ready(&**worker) {
                worker.work(Wake::Source(source), rings)?;
            }
            rings[0].publish()?;
        }
        panic!("the device hangs with {} requests in flight", rings[0].in_flight());
    }
}

/// The sources that have something.
fn ready(worker: &dyn Worker) -> Vec<usize> {
    let sources = worker.sources();
    let mut polled: Vec<_> = sources.iter().map(|source| PollFd::new(source, PollFlags::IN)).collect();
    poll(&mut polled, Some(&WAIT)).expect("the host polls");
    (0..polled.len()).filter(|at| !polled[*at].revents().is_empty()).collect()
}

/// A part of a request in up to `cuts` + 1 descriptors: offset, length and flags of each.
fn cut(at: usize, len: usize, cuts: u8, flags: u16) -> Vec<(usize, usize, u16)> {
    let piece = (len / (usize::from(cuts) + 1)).max(1);
    (0..len).step_by(piece).map(|start| (at + start, piece.min(len - start), flags)).collect()
}

fn contents(image: &PathBuf) -> Vec<u8> {
    let mut contents = Vec::new();
    File::open(image).and_then(|mut file| file.read_to_end(&mut contents)).expect("the image can be read");
    contents
}
