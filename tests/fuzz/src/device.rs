//! A whole device behind its registers, with its lanes on their own threads, and everything at once: accesses of any sort,
//! memory that the guest changes and gives up, mappings that the host refuses, invalidations, processes that end and are
//! followed by others.
//!
//! - Nothing panics, whichever thread it is on; a lane that does would only break its device, and so is asked about.
//! - Every write is answered, resets above all.
//! - After a reset, with the host well again, an honest driver is served as ever.
//! - When the device is gone, none of the guest's memory is mapped.

use std::io;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Once, mpsc};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::{Budget, CHUNK_SIZE, MapCache, PAGE_SIZE, PageSource};
use io_bus::{Deferral, Device, Written};
use testkit::driver::{Descriptor, RawQueue, Registers, status};
use testkit::memory::{Failure, FakeForeignMemory};
use virtio_backend::{Backend, Record};
use virtio_disk::{Config as DiskConfig, Disk, EngineKind, Image};
use virtio_mmio::{InterruptLine, Transport};
use virtio_rng::{Config as RngConfig, Kernel, Rng};

const RAM: u64 = 0x4000_0000;
const PAGES: u64 = 48;
const QUEUES: u64 = RAM;
const TABLES: u64 = RAM + 0x4000;
const BUFFERS: u64 = RAM + 0x8000;
const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;
const SECTORS: u64 = 64;

const PATIENCE: Duration = Duration::from_secs(20);

/// How many processes may follow each other.
const LIVES: usize = 4;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    PlainDisk,
    UringDisk,
    Rng,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The driver brings the device up, with these of the features that it offers.
    BringUp {
        features: u64,
    },
    Reset,
    Access {
        offset: u16,
        width: u8,
        value: u64,
        read: bool,
    },
    /// A request as the device expects it, of one part to be read and one to be written.
    Request {
        kind: u8,
        sector: u16,
        at: u16,
        len: u16,
        writes: bool,
        indirect: bool,
    },
    Descriptor {
        slot: u8,
        addr: Where,
        len: u16,
        odd_len: Option<u32>,
        flags: u8,
        next: u8,
    },
    Publish {
        head: u8,
    },
    Notify {
        queue: u8,
    },
    Flip {
        at: u32,
        value: u64,
    },
    GiveUp {
        page: u8,
        count: u8,
    },
    GetBack {
        page: u8,
    },
    Invalidate,
    FailMapping {
        nth: u8,
        how: u8,
    },
    Follow,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Where {
    Buffer(u16),
    Memory(u32),
    Table(u8),
    Any(u64),
}

impl Where {
    fn address(self) -> u64 {
        match self {
            Self::Buffer(at) => BUFFERS + u64::from(at),
            Self::Memory(at) => RAM + u64::from(at) % (PAGES * PAGE_SIZE),
            Self::Table(number) => TABLES + u64::from(number % 8) * 0x200,
            Self::Any(address) => address,
        }
    }
}

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Panics on any thread, since the program began.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            PANICS.fetch_add(1, SeqCst);
            before(what);
        }));
    });
}

struct Machine {
    kind: Kind,
    transport: Option<Arc<Transport>>,
    queue: RawQueue,
    memory: FakeForeignMemory,
    cache: Arc<MapCache>,
    record: Record,
    folder: tempfile::TempDir,
    lives: usize,
    /// By page, whether the guest has it.
    pages: [bool; PAGES as usize],
}

/// Plays a guest and its host.
///
/// # Panics
/// The device did something that it must not do.
pub fn run(bytes: &[u8]) {
    watch_for_panics();
    let mut source = Unstructured::new(bytes);
    let Ok(kind) = Kind::arbitrary(&mut source) else { return };
    let panics = PANICS.load(SeqCst);
    let mut machine = Machine::new(kind);
    while !source.is_empty() {
        let Ok(step) = Step::arbitrary(&mut source) else { break };
        machine.make(step);
    }
    machine.prove();
    machine.end();
    assert_eq!(PANICS.load(SeqCst), panics, "something panicked on another thread");
}

impl Machine {
    fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        std::fs::write(folder.path().join("disk.img"), vec![0x11; SECTORS as usize * 512]).unwrap();
        let memory = FakeForeignMemory::new(&[(RAM, PAGES * PAGE_SIZE)]);
        let budget = Budget { kept: 2 * CHUNK_SIZE, at_most: 4 * CHUNK_SIZE };
        let cache = MapCache::new(memory.clone(), budget);
        let queue = RawQueue::new(memory.clone(), QUEUES, SIZE);
        let record = Record::new().unwrap();
        let pages = [true; PAGES as usize];
        let mut machine = Self { kind, transport: None, queue, memory, cache, record, folder, lives: 1, pages };
        machine.serve();
        machine
    }

    fn serve(&mut self) {
        let backend = self.backend();
        let transport =
            Transport::recorded(backend, Arc::new(NoLine), Arc::clone(&self.cache), "fuzz", self.record.clone());
        self.transport = Some(transport.unwrap());
    }

    fn backend(&self) -> Arc<dyn Backend> {
        let engine = match self.kind {
            Kind::Rng => return Arc::new(Rng::with_source(&RngConfig::default(), Arc::new(Kernel)).unwrap()),
            Kind::PlainDisk => EngineKind::Plain,
            Kind::UringDisk => EngineKind::IoUring,
        };
        let config = DiskConfig { queues: Some(1), engine, discard: true, ..DiskConfig::default() };
        let image = Image::open(&self.folder.path().join("disk.img"), config.access()).unwrap();
        Arc::new(Disk::new(&config, image).unwrap())
    }

    fn transport(&self) -> &Arc<Transport> {
        self.transport.as_ref().unwrap()
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::BringUp { features } => self.bring_up(features),
            Step::Reset => self.reset(),
            Step::Access { offset, width, value, read } => {
                let (offset, width) = (u64::from(offset % 0x200), usize::from(width % 9));
                match read {
                    true => Device::read(&**self.transport(), offset, &mut vec![0; width]),
                    false => self.write(offset, &value.to_le_bytes()[..width]),
                }
            }
            Step::Request { kind, sector, at, len, writes, indirect } => {
                self.request(kind, sector, at, len, writes, indirect);
            }
            Step::Descriptor { slot, addr, len, odd_len, flags, next } => {
                let (len, flags, next) =
                    (odd_len.unwrap_or(u32::from(len % 4096)), u16::from(flags % 8), u16::from(next % 20));
                let descriptor = Descriptor { addr: addr.address(), len, flags, next };
                self.unless_gone(QUEUES, |machine| machine.queue.write_descriptor(u16::from(slot) % SIZE, descriptor));
            }
            Step::Publish { head } => {
                self.unless_gone(QUEUES, |machine| machine.queue.publish(u16::from(head % 20)));
            }
            Step::Notify { queue } => self.write(0x50, &u32::from(queue % 3).to_le_bytes()),
            Step::Flip { at, value } => {
                let at = RAM + u64::from(at) % (PAGES * PAGE_SIZE - 8) / 8 * 8;
                self.unless_gone(at, |machine| machine.memory.write(at, &value.to_le_bytes()));
            }
            Step::GiveUp { page, count } => {
                for page in (u64::from(page)..).take((count % 8).into()).map(|page| page % PAGES) {
                    self.memory.balloon_out(RAM + page * PAGE_SIZE, 1);
                    self.pages[page as usize] = false;
                }
                self.invalidate();
            }
            Step::GetBack { page } => self.get_back(u64::from(page) % PAGES),
            Step::Invalidate => self.invalidate(),
            Step::FailMapping { nth, how } => {
                let failure = [Failure::Busy, Failure::Errno(12), Failure::Holes][usize::from(how % 3)];
                self.memory.fail_map(u64::from(nth % 4) + 1, failure);
            }
            Step::Follow => self.follow(),
        }
    }

    /// A guest's own processor would trap where it has given memory up.
    fn unless_gone(&mut self, address: u64, act: impl FnOnce(&mut Self)) {
        // A queue's parts are all in its first page.
        if self.pages[((address - RAM) / PAGE_SIZE) as usize] {
            act(self);
        }
    }

    fn get_back(&mut self, page: u64) {
        if !self.pages[page as usize] {
            self.memory.balloon_in(RAM + page * PAGE_SIZE, 1);
            self.pages[page as usize] = true;
        }
    }

    /// What the pump does when Xen says so.
    fn invalidate(&self) {
        self.cache.invalidate();
        self.transport().release_memory();
        self.cache.sweep();
    }

    fn bring_up(&mut self, features: u64) {
        self.reset();
        self.unless_gone(QUEUES, |machine| {
            machine.queue.clear();
            let transport = machine.transport();
            let wanted = features & transport.offered_features() | VERSION_1;
            // Grants are not to be had here, and the driver does not have to be accepted.
            if transport.negotiate(wanted) {
                transport.set_up_queue(0, &machine.queue);
                transport.add_status(status::DRIVER_OK);
            }
        });
    }

    fn reset(&self) {
        self.write(0x70, &[0; 4]);
        assert_eq!(self.transport().status(), 0, "a reset is done when it is answered");
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Written::Later(deferral) = Device::write(&**self.transport(), offset, data) {
            wait_for(deferral);
        }
    }

    fn request(&mut self, kind: u8, sector: u16, at: u16, len: u16, writes: bool, indirect: bool) {
        let (header, data) = (BUFFERS + u64::from(at % 0x4000) / 16 * 16, BUFFERS + 0x8000);
        let (page, head) = (((header - RAM) / PAGE_SIZE) as usize, self.queue_head());
        if !self.pages[page] || !self.pages[0] || !self.pages[((TABLES - RAM) / PAGE_SIZE) as usize] {
            return;
        }
        let kind = [0_u32, 1, 4, 8, 11, 13][usize::from(kind % 6)];
        let bytes = u128::from(kind) | u128::from(sector % 80) << 64;
        self.memory.write(header, &bytes.to_le_bytes());
        let len = u32::from(len % 8) * 512;
        let middle = if writes { Descriptor::writable(data, len) } else { Descriptor::readable(data, len) };
        let chain = [Descriptor::readable(header, 16), middle, Descriptor::writable(data + 0x2000, 1)];
        if indirect {
            let mut table = chain;
            (table[0], table[1]) = (chain[0].then(1), chain[1].then(2));
            let table = self.queue.write_indirect(TABLES, &table);
            self.queue.write_descriptor(head, table);
        } else {
            let first = head.min(SIZE - 3);
            self.queue.write_chain(first, &chain);
            self.queue.publish(first);
            return;
        }
        self.queue.publish(head);
    }

    fn queue_head(&self) -> u16 {
        if self.pages[0] { self.queue.avail_idx() % SIZE } else { 0 }
    }

    /// The process ends in order, and another one goes on. What it leaves is what one leaves that is killed when nothing is
    /// in flight; `kills` does it in the middle.
    fn follow(&mut self) {
        if self.lives < LIVES {
            self.lives += 1;
            self.stop();
            self.serve();
        }
    }

    fn stop(&mut self) {
        wait_for(self.transport().stop());
        self.transport = None;
    }

    /// The host is well, the guest has all of its memory, and its driver is honest.
    fn prove(&mut self) {
        self.use_up_failures();
        (0..PAGES).for_each(|page| self.get_back(page));
        self.invalidate();
        self.bring_up(0);
        let transport = Arc::clone(self.transport());
        assert_eq!(transport.status(), status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
        let header = (u128::from(8_u32)).to_le_bytes();
        self.memory.write(BUFFERS, &header);
        let data = BUFFERS + 0x1000;
        self.memory.write(data, &[0xee; 32]);
        let (chain, len): (&[_], _) = match self.kind {
            // VIRTIO_BLK_T_GET_ID.
            Kind::PlainDisk | Kind::UringDisk => (
                &[
                    Descriptor::readable(BUFFERS, 16),
                    Descriptor::writable(data, 20),
                    Descriptor::writable(data + 20, 1),
                ],
                21,
            ),
            Kind::Rng => (&[Descriptor::writable(data, 32)], 32),
        };
        self.queue.write_chain(0, chain);
        self.queue.publish(0);
        transport.notify(0);
        assert_eq!(self.queue.wait_used(1).len, len, "an honest request");
        let mut status = [0xee];
        self.memory.read(data + 20, &mut status);
        assert!(matches!(self.kind, Kind::Rng) || status == [0], "an honest request has failed");
    }

    /// A mapping that was to fail, and was not made yet, fails now.
    fn use_up_failures(&self) {
        (0..4).for_each(|_| drop(self.memory.map(&[RAM / PAGE_SIZE])));
    }

    fn end(&mut self) {
        self.stop();
        self.cache.invalidate();
        self.cache.sweep();
        assert_eq!(self.memory.counts().live, 0, "the device is gone, and memory is still mapped");
    }
}

fn wait_for(deferral: Deferral) {
    let (done, end) = mpsc::channel();
    deferral.then(move || done.send(()).unwrap_or_default());
    end.recv_timeout(PATIENCE).expect("a write is answered");
}
