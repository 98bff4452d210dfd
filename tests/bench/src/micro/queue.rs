//! Requests through a ring, in and out, with nothing behind it, or with a disk.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use guest_memory::{Budget, MapCache};
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Ring, RingSetup, Wake, Worker};

use super::{BATCH, Steps};
use crate::guest::BLOCK;
use crate::image::{disk, make_image};

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 1 << 20;

/// Where headers with statuses, indirect tables and data are, and how far apart.
const HEADERS: u64 = RAM + 0x1_0000;
const HEADER: u64 = 32;
const TABLES: u64 = RAM + 0x2_0000;
const TABLE: u64 = 64;
const DATA: u64 = RAM + 0x4_0000;

/// Entries of the queue.
const SIZE: u16 = 64;

/// Bytes of the image.
const IMAGE: u64 = 1 << 20;

/// What is asked of the disk (virtio 1.2 §5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// VIRTIO_BLK_T_IN.
    Read = 0,
    /// VIRTIO_BLK_T_GET_ID.
    GetId = 8,
}

/// A ring that is full of requests at the start of each batch, and empty at its end.
struct Full {
    queue: RawQueue,
    ring: Ring,
}

impl Full {
    fn new(request: Request) -> Result<Self> {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_BYTES)]);
        let queue = RawQueue::new(memory.clone(), RAM, SIZE);
        let block = u32::try_from(BLOCK)?;
        for slot in 0..SIZE {
            let at = u64::from(slot);
            let (header, data) = (HEADERS + HEADER * at, DATA + BLOCK as u64 * at);
            memory.store(header, request as u32);
            memory.store(header + 8, BLOCK as u64 / 512 * at);
            let parts = [
                Descriptor::readable(header, 16).then(1),
                Descriptor::writable(data, block).then(2),
                Descriptor::writable(header + 16, 1),
            ];
            queue.write_descriptor(slot, queue.write_indirect(TABLES + TABLE * at, &parts));
            queue.set_avail_entry(slot, slot);
        }
        let setup = RingSetup { event_idx: true, max_chain_bytes: 1 << 20, ..queue.ring_setup() };
        let ring = Ring::new(&setup, &MapCache::new(memory, Budget::default()))?;
        Ok(Self { queue, ring })
    }

    fn fill(&self) {
        const { assert!(SIZE as u32 == BATCH, "a batch is a full queue") };
        assert_eq!(self.queue.used_idx(), self.queue.avail_idx(), "all requests were given back");
        self.queue.set_avail_idx(self.queue.avail_idx().wrapping_add(SIZE));
    }
}

/// Requests that are given back as they are.
pub(super) struct PopPush(Full);

impl PopPush {
    pub(super) fn new() -> Result<Self> {
        Full::new(Request::Read).map(Self)
    }
}

impl Steps for PopPush {
    fn prepare(&mut self) {
        self.0.fill();
    }

    fn make(&mut self) {
        while let Some(request) = self.0.ring.pop().expect("the ring is well-formed") {
            self.0.ring.push(request, BLOCK + 1).expect("the ring is well-formed");
        }
        self.0.ring.publish().expect("the ring is well-formed");
    }
}

/// Requests to a disk's worker, without its lane.
pub(super) struct Disk {
    full: Full,
    worker: Box<dyn Worker>,
    _backend: Arc<dyn Backend>,
}

impl Disk {
    pub(super) fn new(request: Request, folder: &Path) -> Result<Self> {
        let image = make_image(folder, "micro", IMAGE)?;
        let backend = disk(&image)?;
        let worker = backend.start(0, backend.identity().features).context("The disk does not start")?;
        std::fs::remove_file(image)?;
        Ok(Self { full: Full::new(request)?, worker, _backend: backend })
    }
}

impl Steps for Disk {
    fn prepare(&mut self) {
        self.full.fill();
    }

    /// What the page cache answers has come back when the worker returns; showing it to the driver is the lane's part.
    fn make(&mut self) {
        let rings = std::slice::from_mut(&mut self.full.ring);
        self.worker.work(Wake::Queue(0), rings).expect("the disk works");
        self.full.ring.publish().expect("the ring is well-formed");
    }
}
