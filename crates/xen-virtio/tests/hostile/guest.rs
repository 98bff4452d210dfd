//! A guest: its memory, its driver's queues, and a device of any kind behind its registers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_memory::{Budget, MapCache};
use testkit::device::eventually;
use testkit::driver::{Descriptor, RawQueue, Register, Registers, Used, status};
use testkit::memory::FakeForeignMemory;
use virtio_mmio::{InterruptLine, Transport};

use crate::hosts::{Host, Kind, Request};

/// Where memory starts.
pub const RAM: u64 = 0x4000_0000;
/// Where the first bank ends. What follows is a hole.
pub const RAM_END: u64 = RAM + 0x40_0000;
/// A second bank, and its end.
pub const BANK: u64 = RAM + 0x50_0000;
pub const BANK_END: u64 = BANK + 0x10_0000;
/// What the device may read.
pub const READABLE: u64 = RAM + 0x10_0000;
/// What the device may write.
pub const WRITABLE: u64 = RAM + 0x18_0000;
/// Indirect tables.
pub const TABLES: u64 = RAM + 0x20_0000;
/// Memory that no driver here has the device write.
const CANARY: u64 = RAM + 0x30_0000;
const CANARY_LEN: usize = 0x2000;
const CANARY_BYTE: u8 = 0x5c;
/// Receive buffers.
const RECEIVED: u64 = RAM + 0x38_0000;

/// What the device may write holds this before.
pub const UNTOUCHED: u8 = 0xee;

/// Entries of each queue.
pub const SIZE: u16 = 8;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;

/// Counts interrupts.
#[derive(Default)]
struct Line(AtomicU64);

impl InterruptLine for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// A guest with one device.
pub struct Guest {
    pub kind: Kind,
    pub registers: Arc<Transport>,
    pub memory: FakeForeignMemory,
    pub cache: Arc<MapCache>,
    pub host: Host,
    pub queues: Vec<RawQueue>,
    line: Arc<Line>,
}

/// What a device makes of something that it cannot leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It needs a reset.
    Broken,
    /// It gave a chain back.
    Back(Used),
}

impl Guest {
    /// A guest whose device is just plugged in.
    pub fn new(kind: Kind) -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_END - RAM), (BANK, BANK_END - BANK)]);
        Self::with(kind, memory)
    }

    /// The same, with memory that is already there.
    pub fn with(kind: Kind, memory: FakeForeignMemory) -> Self {
        memory.write(CANARY, &[CANARY_BYTE; CANARY_LEN]);
        let (cache, host) = (MapCache::new(memory.clone(), Budget::default()), Host::new(kind));
        let line = Arc::<Line>::default();
        let registers =
            Transport::new(Arc::clone(&host.device), Arc::clone(&line) as _, Arc::clone(&cache), "hostile").unwrap();
        let count = host.device.identity().queue_sizes.len() as u64;
        let queues = (0..count).map(|index| RawQueue::new(memory.clone(), RAM + 0x1000 * index, SIZE)).collect();
        Self { kind, registers, memory, cache, host, queues, line }
    }

    /// All that the device offers but event indexes, with which a device may say that it wants no kicks.
    pub fn features(&self) -> u64 {
        self.registers.offered_features() & !EVENT_IDX
    }

    /// From reset to FEATURES_OK, with queues that are empty and set up.
    pub fn set_up(&self, features: u64) {
        assert!(self.registers.negotiate(features), "{features:#x} is offered");
        for (index, queue) in (0..).zip(&self.queues) {
            queue.clear();
            self.registers.set_up_queue(index, queue);
        }
    }

    /// From reset to DRIVER_OK.
    pub fn bring_up(&self) {
        self.set_up(self.features());
        self.registers.add_status(status::DRIVER_OK);
    }

    pub fn is_broken(&self) -> bool {
        self.registers.status() & status::DEVICE_NEEDS_RESET != 0
    }

    pub fn queue(&self, index: u32) -> &RawQueue {
        &self.queues[index as usize]
    }

    /// Waits until the device has made something of what is in `queue`. Not for one that [may be
    /// silent](Kind::may_be_silent).
    pub fn outcome(&self, queue: u32) -> Outcome {
        eventually("the device answers or breaks", || self.is_broken() || self.queue(queue).used_idx() != 0);
        // A device may give one chain back and break over the next.
        if self.queue(queue).used_idx() != 0 { Outcome::Back(self.queue(queue).used(0)) } else { Outcome::Broken }
    }

    /// Waits until the device has found out that it cannot go on.
    pub fn expect_broken(&self, why: &str) {
        eventually(why, || self.is_broken());
        eventually("the driver is told", || self.registers.read(Register::InterruptStatus) & 2 != 0);
    }

    /// Resets the device: when that is done nothing of the guest's is held, and nothing was written that was not given.
    pub fn reset(&self) {
        self.registers.reset();
        assert_eq!((self.registers.status(), self.registers.read(Register::InterruptStatus)), (0, 0));
        assert_eq!(self.cache.stats().bytes_pinned, 0, "a request holds memory after the reset");
        let mut canary = vec![0; CANARY_LEN];
        self.memory.read(CANARY, &mut canary);
        assert!(canary.iter().all(|byte| *byte == CANARY_BYTE), "memory was written that nobody gave");
    }

    /// Resets the device, and uses it as an honest driver does.
    pub fn works_after_reset(&self) {
        self.reset();
        self.bring_up();
        self.works();
    }

    /// Makes a request in an honest way of a device that is in use.
    pub fn works(&self) {
        let request = self.host.request();
        let chain = self.buffers(&request);
        let table = self.queue(request.queue).write_indirect(TABLES, &linked(&chain));
        self.served(&request, &[table]);
    }

    /// Makes so many requests of a device that is in use, and does not wait for them. Each reads and writes the same, and has
    /// its table to itself.
    pub fn ask_for(&self, requests: u16) {
        for head in 0..requests {
            let request = self.host.request();
            let chain = linked(&self.buffers(&request));
            let queue = self.queue(request.queue);
            let table = queue.write_indirect(TABLES + 0x100 * u64::from(head), &chain);
            queue.write_descriptor(head, table);
            queue.publish(head);
            self.registers.notify(request.queue);
        }
    }

    /// Makes a request of these descriptors, which are those of [`buffers`](Self::buffers) or parts of them.
    pub fn served(&self, request: &Request, chain: &[Descriptor]) {
        let queue = self.queue(request.queue);
        let (before, answers) = (queue.used_idx(), self.queue(0).used_idx());
        self.offer_receive_buffers();
        queue.write_chain(0, chain);
        queue.publish(0);
        self.registers.notify(request.queue);
        eventually("the device serves", || self.is_broken() || queue.used_idx() != before);
        assert!(!self.is_broken(), "a device that an honest driver uses breaks");
        let used = queue.used(before);
        assert_eq!(used.id, 0);
        let mut written = vec![0; used.len as usize];
        self.memory.read(WRITABLE, &mut written);
        self.host.expect(request, &written);
        self.wait_refused(request, answers);
    }

    /// The buffers of a request, filled: one for each direction that it has.
    pub fn buffers(&self, request: &Request) -> Vec<Descriptor> {
        self.memory.write(READABLE, &request.readable);
        self.memory.write(WRITABLE, &vec![UNTOUCHED; request.writable]);
        let readable = Descriptor::readable(READABLE, request.readable.len() as u32);
        let writable = Descriptor::writable(WRITABLE, request.writable as u32);
        [readable, writable].into_iter().filter(|buffer| buffer.len > 0).collect()
    }

    /// Where the device answers in a queue of its own, gives it a buffer in each entry that it has not got one in.
    fn offer_receive_buffers(&self) {
        if self.kind != Kind::Vsock {
            return;
        }
        let queue = self.queue(0);
        while queue.avail_idx().wrapping_sub(queue.used_idx()) < SIZE {
            let head = queue.avail_idx() % SIZE;
            queue.write_descriptor(head, Descriptor::writable(RECEIVED + 0x1000 * u64::from(head), 0x1000));
            queue.publish(head);
        }
        self.registers.notify(0);
    }

    /// Where the device answers in a queue of its own, waits until it says there that nobody listens where `request` wanted
    /// to connect. Other packets, of what happened before, may come first; `seen` of them were there already.
    fn wait_refused(&self, request: &Request, mut seen: u16) {
        if self.kind != Kind::Vsock {
            return;
        }
        let queue = self.queue(0);
        eventually("the host answers", || {
            let mut is_refused = false;
            while seen != queue.used_idx() {
                let mut header = [0; 44];
                self.memory.read(RECEIVED + 0x1000 * u64::from(queue.used(seen).id), &mut header);
                // VIRTIO_VSOCK_OP_RST, to the port that asked.
                is_refused |= header[30] == 3 && header[20..24] == request.readable[16..20];
                seen = seen.wrapping_add(1);
            }
            self.offer_receive_buffers();
            is_refused
        });
    }

    /// A counter of the device, of its lanes or of its registers.
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.registers.counters();
        counters.iter().find(|(its_name, _)| *its_name == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.line.0.load(SeqCst)
    }
}

/// The same descriptors as the entries of a table, linked.
pub fn linked(chain: &[Descriptor]) -> Vec<Descriptor> {
    let links = (1..).zip(chain).map(|(next, descriptor)| descriptor.then(next));
    links.take(chain.len() - 1).chain(chain.last().copied()).collect()
}
