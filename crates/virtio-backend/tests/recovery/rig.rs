//! A queue whose ledger outlives its rings, with everything in reach that a process or a guest could have left there.

use std::os::fd::AsFd;
use std::sync::Arc;

use guest_memory::{Access, Budget, MapCache, Sources};
use rustix::io::{pread, pwrite};
use testkit::driver::{Descriptor, RawQueue};
use testkit::grants::{FakeGrants, GrantFailure};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Fault, Ledger, Record, Ring, RingPosition, RingSetup};

pub(crate) const BASE: u64 = 0x4000_0000;
pub(crate) const RAM: u64 = 1 << 20;
const BUFFERS: u64 = BASE + 0x1_0000;

/// How the device reaches what the driver offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Frames,
    /// Chains are taken in batches, and what was written is copied to the driver when it is shown.
    Grants,
}

pub(crate) struct Rig {
    pub(crate) memory: FakeForeignMemory,
    /// As the driver sees it.
    pub(crate) queue: RawQueue,
    pub(crate) record: Record,
    pub(crate) setup: RingSetup,
    cache: Arc<MapCache>,
    grants: FakeGrants,
    ledger: Area,
    ledger_size: u16,
    /// By head, where the device finds what it describes.
    buffers: Vec<u64>,
}

/// A part of the record.
struct Area {
    at: usize,
    len: usize,
}

impl Rig {
    /// A queue of `size` entries, whose ledger has room for `ledger_size`, and whose indices begin at `start`.
    pub(crate) fn new(way: Way, size: u16, ledger_size: u16, start: u16) -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, RAM)]);
        let queue = RawQueue::new(memory.clone(), BASE, size);
        let grants = FakeGrants::new(memory.clone());
        let places = (0..u64::from(size)).map(|head| BUFFERS + 0x100 * head);
        let (cache, seen, buffers) = match way {
            Way::Frames => (MapCache::new(memory.clone(), Budget::default()), queue.clone(), places.collect()),
            Way::Grants => {
                let cache = MapCache::new(Sources::grants(grants.clone()).copying_up_to(4096), Budget::default());
                let seen = queue.clone().at(grants.grant(BASE, queue.bytes(), Access::Write));
                (cache, seen, places.map(|place| grants.grant(place, 64, Access::Write)).collect())
            }
        };
        let setup = RingSetup {
            size,
            max_size: ledger_size,
            desc_table: seen.desc_table(),
            avail_ring: seen.avail_ring(),
            used_ring: seen.used_ring(),
            event_idx: false,
            position: RingPosition { next_avail: start, next_used: start },
            max_chain_bytes: 1 << 16,
        };
        let record = Record::new().unwrap();
        let ledger = Area { at: 0, len: 0 };
        let mut rig = Self { memory, queue, record, setup, cache, grants, ledger, ledger_size, buffers };
        drop(rig.ring().unwrap());
        rig.ledger = rig.find_ledger();
        rig.begin_anew();
        rig
    }

    /// The only thing in the record so far, behind the page that says what it is.
    fn find_ledger(&self) -> Area {
        const STEP: usize = 64;
        let bytes = read(&self.record, 0, 1 << 20);
        let mut parts = bytes.chunks_exact(STEP).enumerate().skip(4096 / STEP);
        let (nth, _) = parts.find(|(_, part)| **part != [0; STEP]).expect("a queue in service");
        Area { at: nth * STEP, len: STEP + 8 * usize::from(self.ledger_size) }
    }

    /// A queue that has never been in service.
    pub(crate) fn begin_anew(&self) {
        self.queue.clear();
        self.new_ledger().clear();
        self.queue.set_avail_idx(self.setup.position.next_avail);
        self.set_used_idx(self.setup.position.next_used);
    }

    pub(crate) fn new_ledger(&self) -> Ledger {
        self.record.ledgers(&[self.ledger_size]).unwrap().remove(0)
    }

    /// The ring of the process that follows.
    pub(crate) fn ring(&self) -> Result<Ring, Fault> {
        Ring::recorded(&self.setup, &self.cache, self.new_ledger())
    }

    pub(crate) fn offer(&self, head: u16) {
        self.queue.write_chain(head, &[Descriptor::writable(self.buffers[usize::from(head)], 64)]);
        self.queue.publish(head);
    }

    /// Offers a chain of which the device has all to read.
    pub(crate) fn offer_readable(&self, head: u16) {
        self.queue.write_chain(head, &[Descriptor::readable(self.buffers[usize::from(head)], 64)]);
        self.queue.publish(head);
    }

    /// The host has no room the next time that grants are to be reached.
    pub(crate) fn fail_next_call(&self) {
        self.grants.fail_call(1, GrantFailure::Busy);
    }

    /// The guest has given up pages, or got others.
    pub(crate) fn forget_mappings(&self) {
        self.cache.invalidate();
    }

    /// Writes what is the device's to write.
    pub(crate) fn set_used_idx(&self, index: u16) {
        self.memory.store(self.queue.used_ring() + 2, index);
    }

    /// Writes the head of an entry of the used ring.
    pub(crate) fn set_used_head(&self, index: u16, head: u32) {
        self.memory.store(self.queue.used_ring() + 4 + 8 * u64::from(index % self.queue.size()), head);
    }

    /// The words of the ledger.
    pub(crate) fn ledger_words(&self) -> Vec<u64> {
        let bytes = read(&self.record, self.ledger.at, self.ledger.len);
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// Writes one of them.
    pub(crate) fn set_ledger_word(&self, nth: usize, word: u64) {
        write(&self.record, self.ledger.at + 8 * nth, &word.to_le_bytes());
    }
}

fn read(record: &Record, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(pread(record.as_fd(), &mut bytes, at as u64).unwrap(), len);
    bytes
}

pub(crate) fn write(record: &Record, at: usize, bytes: &[u8]) {
    assert_eq!(pwrite(record.as_fd(), bytes, at as u64).unwrap(), bytes.len());
}
