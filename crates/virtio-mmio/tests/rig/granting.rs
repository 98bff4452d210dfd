//! A device under test whose guest grants what it passes to it.

use std::sync::atomic::Ordering::SeqCst;

use guest_memory::{Access, Budget, MapCache, Sources};
use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::{ACCESS_PLATFORM, Descriptor, RawQueue, Registers, status};
use testkit::grants::FakeGrants;
use testkit::memory::FakeForeignMemory;

use super::{BUFFERS, RAM, RAM_LEN, RING_RESET, Rig, VERSION_1};

/// Entries of each queue: more chains than are fetched at once.
pub const SIZE: u16 = 64;

/// What a granting driver negotiates.
pub const FEATURES: u64 = VERSION_1 | RING_RESET | super::INDIRECT_DESC | ACCESS_PLATFORM;

/// Where tests put indirect tables.
pub const TABLES: u64 = RAM + 0x1_0000;

/// Bytes of a buffer that is so small that it is copied, and of one that is mapped.
pub const SMALL: usize = 100;
pub const LARGE: usize = 0x2100;

pub struct Granting {
    pub rig: Rig,
    pub grants: FakeGrants,
}

/// What a driver lends to its device.
#[derive(Clone, Copy, Debug)]
pub struct Lent {
    /// Where the driver has it.
    pub address: u64,
    /// Where the device finds it.
    pub granted: u64,
    pub len: usize,
}

impl Lent {
    pub fn readable(self) -> Descriptor {
        Descriptor::readable(self.granted, u32::try_from(self.len).unwrap())
    }

    pub fn writable(self) -> Descriptor {
        Descriptor::writable(self.granted, u32::try_from(self.len).unwrap())
    }
}

impl Granting {
    /// A device just plugged in that reaches nothing but grants.
    pub fn new(behaviour: Behaviour) -> Self {
        Self::reaching(behaviour, |_, grants| Sources::grants(grants))
    }

    /// The same, of which `sources` says what it reaches.
    pub fn reaching(behaviour: Behaviour, sources: impl FnOnce(FakeForeignMemory, FakeGrants) -> Sources) -> Self {
        Self::within(Budget::default(), behaviour, sources)
    }

    /// The same, with a budget.
    pub fn within(
        budget: Budget,
        behaviour: Behaviour,
        sources: impl FnOnce(FakeForeignMemory, FakeGrants) -> Sources,
    ) -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let grants = FakeGrants::new(memory.clone());
        let cache = MapCache::new(sources(memory.clone(), grants.clone()).copying_up_to(4096), budget);
        let device = TestDevice::with_lanes(behaviour, &[SIZE, 8], vec![0..1, 1..2]);
        Self { rig: Rig::behind(device, memory, cache), grants }
    }

    /// A device in use, with its first queue.
    pub fn running(behaviour: Behaviour) -> (Self, RawQueue) {
        let guest = Self::new(behaviour);
        let queue = guest.bring_up();
        (guest, queue)
    }

    /// From reset to DRIVER_OK with an empty queue, which is granted anew.
    pub fn bring_up(&self) -> RawQueue {
        let queue = self.queue();
        self.start(&queue);
        queue
    }

    /// From reset to DRIVER_OK. What the queue has by then is seen at once.
    pub fn start(&self, queue: &RawQueue) {
        self.rig.registers.bring_up(FEATURES, queue);
    }

    /// An empty queue, granted.
    pub fn queue(&self) -> RawQueue {
        let queue = RawQueue::new(self.rig.memory.clone(), RAM, SIZE);
        queue.clear();
        let bytes = queue.bytes();
        queue.at(self.grants.grant(RAM, bytes, Access::Write))
    }

    /// Lends the buffer in the `nth` place, for as long as it takes.
    pub fn lend(&self, nth: u64, len: usize, access: Access) -> Lent {
        let address = BUFFERS + nth * 0x4000 + 0x123;
        Lent { address, granted: self.grants.grant(address, len, access), len }
    }

    /// Lends `bytes` to be read, in the `nth` place.
    pub fn lend_bytes(&self, nth: u64, bytes: &[u8]) -> Lent {
        let lent = self.lend(nth, bytes.len(), Access::Read);
        self.rig.memory.write(lent.address, bytes);
        lent
    }

    /// Writes a table into the `nth` place for such, and lends it. Returns the descriptor for it.
    pub fn lend_table(&self, nth: u64, queue: &RawQueue, chain: &[Descriptor]) -> (Descriptor, Lent) {
        let linked: Vec<_> = (1..).zip(chain).map(|(next, descriptor)| descriptor.then(next)).collect();
        let table: Vec<_> = linked.iter().take(chain.len() - 1).chain(chain.last()).copied().collect();
        let address = TABLES + nth * 0x400;
        let descriptor = queue.write_indirect(address, &table);
        let len = 16 * table.len();
        let granted = self.grants.grant(address, len, Access::Read);
        (Descriptor { addr: granted, ..descriptor }, Lent { address, granted, len })
    }

    /// Takes back what was lent. Panics if the device is not done with it.
    pub fn take_back(&self, lent: Lent) {
        self.grants.end_access(lent.granted, lent.len).unwrap();
    }

    /// What the driver sees in a buffer.
    pub fn bytes(&self, lent: Lent) -> Vec<u8> {
        let mut bytes = vec![0; lent.len];
        self.rig.memory.read(lent.address, &mut bytes);
        bytes
    }

    /// Publishes a chain without a kick.
    pub fn publish(&self, queue: &RawQueue, head: u16, chain: &[Descriptor]) {
        queue.write_chain(head, chain);
        queue.publish(head);
    }

    /// Publishes `count` requests with a buffer of `len` bytes each way, without a kick.
    pub fn publish_many(&self, queue: &RawQueue, count: u16, len: usize) -> Vec<Lent> {
        let mut lent = Vec::new();
        for nth in 0..count {
            let place = 2 * u64::from(nth) % 28;
            let source = self.lend_bytes(place, &vec![u8::try_from(nth).unwrap() + 1; len]);
            let target = self.lend(place + 1, len, Access::Write);
            self.publish(queue, 2 * nth, &[source.readable(), target.writable()]);
            lent.extend([source, target]);
        }
        lent
    }

    /// Offers a chain as the next, and kicks.
    pub fn offer(&self, queue: &RawQueue, chain: &[Descriptor]) {
        self.publish(queue, queue.avail_idx() * 4 % SIZE, chain);
        self.rig.registers.notify(0);
    }

    pub fn is_broken(&self) -> bool {
        self.rig.registers.status() & status::DEVICE_NEEDS_RESET != 0
    }

    /// The device needs a reset, and has let go of everything.
    pub fn assert_breaks(&self, why: &str) {
        eventually(&format!("the device breaks: {why}"), || self.is_broken());
        eventually(&format!("nothing is mapped: {why}"), || self.grants.counts().live == 0);
    }

    /// Resets the device, finds nothing mapped, and uses it anew.
    pub fn assert_works_after_reset(&self) {
        self.rig.registers.reset();
        assert_eq!(self.grants.counts().live, 0);
        let queue = self.bring_up();
        self.assert_works(&queue);
    }

    /// The device copies bytes, in all ways.
    pub fn assert_works(&self, queue: &RawQueue) {
        for len in [SMALL, LARGE] {
            let sent: Vec<u8> = (0..=250).cycle().take(len).collect();
            let (source, target) = (self.lend_bytes(28, &sent), self.lend(30, len, Access::Write));
            let (table, lent) = self.lend_table(30, queue, &[source.readable(), target.writable()]);
            for chain in [&[source.readable(), target.writable()][..], &[table]] {
                self.rig.memory.write(target.address, &vec![0; len]);
                let before = queue.used_idx();
                self.offer(queue, chain);
                assert_eq!(queue.wait_used(before.wrapping_add(1)).len as usize, len);
                assert!(self.bytes(target) == sent, "{len} bytes in {} descriptors", chain.len());
            }
            [source, target, lent].into_iter().for_each(|lent| self.take_back(lent));
        }
        assert!(!self.is_broken());
    }

    /// Waits until the device holds a request.
    pub fn wait_held(&self) {
        eventually("the device takes a request", || self.rig.device.held.load(SeqCst) == 1);
    }
}
