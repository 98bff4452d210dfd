//! A guest's memory and its driver's side of a disk's queue: a split virtqueue (virtio 1.2 §2.7) with the requests of
//! §5.2.6 in it.
//!
//! The driver is Linux's in what a device can see of it: a chain of header, data and status behind one indirect
//! descriptor, kicks and calls by event index where the device has it, and a look at the ring after calls were asked for.
//! What a request carries is fixed by its slot, so that little is left to do for each, and the device is what is measured.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use anyhow::{Context, Result, bail, ensure};
use guest_memory::{Mapping, SharedMemory};
use vm_memory::{AtomicAccess, Bytes};

/// Bytes of a request's data.
pub const BLOCK: usize = 4096;

/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;

/// Sectors in a block.
const SECTORS: u64 = BLOCK as u64 / 512;

/// Bytes of a descriptor (virtio 1.2 §2.7.5).
const DESCRIPTOR: usize = 16;

/// Flags of a descriptor.
const NEXT: u64 = 1;
const WRITE: u64 = 2;
const INDIRECT: u64 = 4;

/// Descriptors of a request.
const PARTS: u16 = 3;

/// Where the parts of a queue are, in bytes from its start. Header and status of a request are neighbours, as in Linux.
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
const TABLES: usize = 0x3000;
const TABLE: usize = 64;
const HEADERS: usize = 0x8000;
const HEADER: usize = 32;
const STATUS: usize = 16;
const DATA: usize = 0x1_0000;

/// Bytes that a queue and its requests take.
const QUEUE_BYTES: usize = DATA + QUEUE_SIZE as usize * BLOCK;

/// No device writes this as a status.
const UNANSWERED: u8 = 0xff;

/// Which way a request's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk: VIRTIO_BLK_T_IN.
    Read = 0,
    /// To the disk: VIRTIO_BLK_T_OUT.
    Write = 1,
}

/// What was agreed on for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// Memory of a guest with room for some queues.
pub struct Guest {
    memory: Arc<SharedMemory>,
    queues: usize,
}

impl Guest {
    /// Zeroed memory.
    ///
    /// # Errors
    /// The host has none.
    pub fn new(queues: usize) -> Result<Self> {
        let memory = SharedMemory::new("bench-guest", queues * QUEUE_BYTES).context("Cannot make a guest's memory")?;
        Ok(Self { memory: Arc::new(memory), queues })
    }

    /// All of it.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// All of it, for who maps pieces of it.
    pub fn mapping(&self) -> Arc<dyn Mapping> {
        Arc::clone(&self.memory) as Arc<dyn Mapping>
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.queues * QUEUE_BYTES
    }

    /// The driver of a queue that is new to the device. `base` is the guest address of the memory's first byte.
    ///
    /// # Errors
    /// There is no room for `depth` requests at a time.
    pub fn queue(
        &self,
        index: usize,
        base: u64,
        features: RingFeatures,
        direction: Direction,
        depth: u16,
    ) -> Result<Queue> {
        ensure!(index < self.queues, "The guest has {} queues", self.queues);
        let most = if features.indirect { QUEUE_SIZE } else { QUEUE_SIZE / PARTS };
        ensure!(depth <= most, "No more than {most} requests fit into a queue that has no indirect descriptors");
        let memory = Arc::clone(&self.memory);
        let start = index * QUEUE_BYTES;
        let mut queue = Queue { memory, start, base, features, direction, available: 0, told: 0, used: 0 };
        queue.lay_out(depth);
        Ok(queue)
    }
}

/// The driver's side of a queue. A request is known by its slot, below the queue's depth.
pub struct Queue {
    memory: Arc<SharedMemory>,
    start: usize,
    base: u64,
    features: RingFeatures,
    direction: Direction,
    /// Requests made available, for how many of them a kick was thought of, and how many came back, modulo 2^16.
    available: u16,
    told: u16,
    used: u16,
}

impl Queue {
    /// Guest addresses of descriptor table, available ring and used ring.
    pub fn areas(&self) -> [u64; 3] {
        [0, AVAILABLE, USED].map(|at| self.address(at))
    }

    fn lay_out(&mut self, depth: u16) {
        let zeroes = [0; DATA];
        self.memory.memory().subslice(self.start, zeroes.len()).expect("the queue's own").copy_from(&zeroes);
        for slot in 0..depth {
            let (header, data) = (self.header(slot), self.data(slot));
            let way = if self.direction == Direction::Read { WRITE } else { 0 };
            let parts = [(header, 16, 0), (data, BLOCK, way), (header + STATUS, 1, WRITE)];
            let first = if self.features.indirect { 0 } else { usize::from(PARTS * slot) };
            let table = if self.features.indirect { TABLES + TABLE * usize::from(slot) } else { 0 };
            for (index, (at, len, flags)) in (first..).zip(parts) {
                let next =
                    if index + 1 < first + usize::from(PARTS) { (index as u64 + 1) << 48 | NEXT << 32 } else { 0 };
                self.descriptor(table + DESCRIPTOR * index, at, len as u64 | flags << 32 | next);
            }
            if self.features.indirect {
                let len = u64::from(PARTS) * DESCRIPTOR as u64;
                self.descriptor(DESCRIPTOR * usize::from(slot), table, len | INDIRECT << 32);
            }
            self.store(header, self.direction as u64);
        }
    }

    fn descriptor(&self, at: usize, target: usize, rest: u64) {
        self.store(at, self.address(target));
        self.store(at + 8, rest);
    }

    /// Fills a slot with a request for a block of the disk, and makes it available. As Linux's driver does, it shows the device
    /// each request at once, and asks whether it [wants a kick](Self::wants_kick) for many at a time.
    pub fn submit(&mut self, slot: u16, block: u64) {
        let header = self.header(slot);
        self.store(header + 8, block * SECTORS);
        self.store(header + STATUS, UNANSWERED);
        match self.direction {
            Direction::Read => self.store(self.data(slot), u64::MAX),
            Direction::Write => self.store(self.data(slot), block),
        }
        let head = if self.features.indirect { slot } else { slot * PARTS };
        self.store(AVAILABLE + 4 + 2 * usize::from(self.available % QUEUE_SIZE), head);
        self.available = self.available.wrapping_add(1);
        self.release(AVAILABLE + 2, self.available);
    }

    /// Whether the device wants a kick for what was made available since the last call.
    pub fn wants_kick(&mut self) -> bool {
        if self.told == self.available {
            return false;
        }
        let before = std::mem::replace(&mut self.told, self.available);
        // The index must be visible before the device's wish is read, or both may wait (§2.7.13.4.1).
        fence(SeqCst);
        if self.features.event_idx {
            let event: u16 = self.load(USED + 4 + 8 * usize::from(QUEUE_SIZE));
            return self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before);
        }
        self.load::<u16>(USED) & 1 == 0
    }

    /// Takes back a request that is done: its slot, and the block it was for.
    ///
    /// # Errors
    /// The device did not do what it was asked for.
    pub fn take(&mut self) -> Result<Option<(u16, u64)>> {
        let index: u16 = self.acquire(USED + 2);
        if index == self.used {
            return Ok(None);
        }
        let head: u32 = self.load(USED + 4 + 8 * usize::from(self.used % QUEUE_SIZE));
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).ok().filter(|head| *head < QUEUE_SIZE);
        let Some(head) = head else { bail!("The device gives back a request that there is not") };
        let slot = if self.features.indirect { head } else { head / PARTS };
        let header = self.header(slot);
        let (block, status) = (self.load::<u64>(header + 8) / SECTORS, self.load::<u8>(header + STATUS));
        ensure!(status == 0, "The device answers {status} to a request for block {block}");
        let found: u64 = self.load(self.data(slot));
        ensure!(found == block, "The device says that block {block} is what block {found} is");
        Ok(Some((slot, block)))
    }

    /// Asks to be called for the next request that is done. Returns whether there is one already, for which no call may
    /// come.
    pub fn ask_for_calls(&self) -> bool {
        if self.features.event_idx {
            self.store(AVAILABLE + 4 + 2 * usize::from(QUEUE_SIZE), self.used);
        }
        fence(SeqCst);
        self.acquire::<u16>(USED + 2) != self.used
    }

    fn header(&self, slot: u16) -> usize {
        HEADERS + HEADER * usize::from(slot)
    }

    fn data(&self, slot: u16) -> usize {
        DATA + BLOCK * usize::from(slot)
    }

    fn address(&self, at: usize) -> u64 {
        self.base + (self.start + at) as u64
    }

    fn load<T: AtomicAccess>(&self, at: usize) -> T {
        self.memory.memory().load(self.start + at, Relaxed).expect("the queue's own, and aligned")
    }

    fn acquire<T: AtomicAccess>(&self, at: usize) -> T {
        self.memory.memory().load(self.start + at, Acquire).expect("the queue's own, and aligned")
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        self.memory.memory().store(value, self.start + at, Relaxed).expect("the queue's own, and aligned");
    }

    fn release(&self, at: usize, value: u16) {
        self.memory.memory().store(value, self.start + at, Release).expect("the queue's own, and aligned");
    }
}
