//! A split virtqueue (virtio 1.2 §2.7) that is written by hand: right, or wrong in any way.

use std::thread;
use std::time::{Duration, Instant};

use virtio_backend::{RingPosition, RingSetup};

use crate::memory::FakeForeignMemory;

/// How long a test waits for what must happen before it calls it a hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the specification's names")]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Used {
    /// Head of the chain that is given back.
    pub id: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// A queue's three areas in guest memory, one behind the other.
#[derive(Clone)]
pub struct RawQueue {
    memory: FakeForeignMemory,
    base: u64,
    /// Where a device finds what is at `base`.
    device_base: u64,
    size: u16,
}

impl Descriptor {
    /// A buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, ..Self::default() }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, ..Self::default() }
    }

    /// A table of descriptors, `len` bytes long.
    pub fn indirect(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: INDIRECT, ..Self::default() }
    }

    /// The same, followed by the descriptor in slot `next`.
    #[must_use]
    pub fn then(self, next: u16) -> Self {
        Self { flags: self.flags | NEXT, next, ..self }
    }

    /// Whether the device writes the buffer.
    pub fn is_writable(self) -> bool {
        self.flags & WRITE != 0
    }

    fn bytes(self) -> [u8; 16] {
        let value = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        value.to_le_bytes()
    }
}

impl RawQueue {
    /// A queue of `size` entries from `base` on, which is aligned to 16. Empty if the memory is zero.
    pub fn new(memory: FakeForeignMemory, base: u64, size: u16) -> Self {
        Self { memory, base, device_base: base, size }
    }

    /// The same queue, which a device finds at `device_base`: where it was granted.
    #[must_use]
    pub fn at(self, device_base: u64) -> Self {
        Self { device_base, ..self }
    }

    /// Zeroes the three areas, for the queue to be used anew.
    pub fn clear(&self) {
        self.memory.write(self.base, &vec![0; self.bytes()]);
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Bytes of the three areas.
    pub fn bytes(&self) -> usize {
        usize::try_from(self.avail_event_address() + 2 - self.base).expect("below 1 MiB")
    }

    /// What a device is told of the queue, which is as long as it may be and fresh; without event indexes. Chains may describe
    /// 64 KiB.
    pub fn ring_setup(&self) -> RingSetup {
        RingSetup {
            size: self.size,
            max_size: self.size,
            desc_table: self.desc_table(),
            avail_ring: self.avail_ring(),
            used_ring: self.used_ring(),
            event_idx: false,
            position: RingPosition::default(),
            max_chain_bytes: 1 << 16,
        }
    }

    /// Where a device finds the descriptor table.
    pub fn desc_table(&self) -> u64 {
        self.device_base
    }

    /// Where a device finds the available ring.
    pub fn avail_ring(&self) -> u64 {
        self.device_base + (self.avail_address() - self.base)
    }

    /// Where a device finds the used ring.
    pub fn used_ring(&self) -> u64 {
        self.device_base + (self.used_address() - self.base)
    }

    /// Where a device finds the first byte behind the queue.
    pub fn end(&self) -> u64 {
        self.device_base + self.bytes() as u64
    }

    /// Writes a descriptor. A slot beyond the table is what lies behind it.
    pub fn write_descriptor(&self, slot: u16, descriptor: Descriptor) {
        self.memory.write(self.base + DESCRIPTOR * u64::from(slot), &descriptor.bytes());
    }

    /// Writes an indirect table at `address`, and returns the descriptor that stands for it.
    pub fn write_indirect(&self, address: u64, descriptors: &[Descriptor]) -> Descriptor {
        for (slot, descriptor) in (0..).zip(descriptors) {
            self.memory.write(address + DESCRIPTOR * slot, &descriptor.bytes());
        }
        Descriptor::indirect(address, u32::try_from(descriptors.len() * 16).expect("a table of some entries"))
    }

    /// Writes a chain of these buffers into the slots from `first` on; `first` is its head.
    pub fn write_chain(&self, first: u16, buffers: &[Descriptor]) {
        for (slot, (index, &buffer)) in (first..).zip(buffers.iter().enumerate()) {
            let is_last = index + 1 == buffers.len();
            self.write_descriptor(slot, if is_last { buffer } else { buffer.then(slot + 1) });
        }
    }

    /// Makes a chain available: the next entry of the available ring, then its index.
    pub fn publish(&self, head: u16) {
        let index = self.avail_idx();
        self.set_avail_entry(index, head);
        self.set_avail_idx(index.wrapping_add(1));
    }

    /// Writes an entry of the available ring, which counts modulo the queue's size.
    pub fn set_avail_entry(&self, index: u16, head: u16) {
        self.memory.store(self.avail_address() + 4 + 2 * u64::from(index % self.size), head);
    }

    /// The driver's index: chains made available so far.
    pub fn avail_idx(&self) -> u16 {
        self.memory.load(self.avail_address() + 2)
    }

    /// Sets the driver's index.
    pub fn set_avail_idx(&self, index: u16) {
        self.memory.store(self.avail_address() + 2, index);
    }

    /// Sets the driver's flags; 1 asks for no interrupts.
    pub fn set_avail_flags(&self, flags: u16) {
        self.memory.store(self.avail_address(), flags);
    }

    /// With event index: asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        self.memory.store(self.used_event_address(), index);
    }

    /// With event index: the driver's index from which on the device wants a kick.
    pub fn avail_event(&self) -> u16 {
        self.memory.load(self.avail_event_address())
    }

    /// The device's flags; 1 asks for no kicks.
    pub fn used_flags(&self) -> u16 {
        self.memory.load(self.used_address())
    }

    /// The device's index: chains given back so far.
    pub fn used_idx(&self) -> u16 {
        self.memory.load(self.used_address() + 2)
    }

    /// An entry of the used ring, which counts modulo the queue's size.
    pub fn used(&self, index: u16) -> Used {
        let at = self.used_address() + 4 + 8 * u64::from(index % self.size);
        Used { id: self.memory.load(at), len: self.memory.load(at + 4) }
    }

    /// Waits until the device has given back `count` chains in all, and returns the last. Panics if
    /// it does not.
    pub fn wait_used(&self, count: u16) -> Used {
        let deadline = Instant::now() + PATIENCE;
        while self.used_idx() != count {
            assert!(Instant::now() < deadline, "used index is {} and not {count}", self.used_idx());
            thread::yield_now();
        }
        self.used(count.wrapping_sub(1))
    }

    fn avail_address(&self) -> u64 {
        self.base + DESCRIPTOR * u64::from(self.size)
    }

    fn used_address(&self) -> u64 {
        (self.used_event_address() + 2).next_multiple_of(4)
    }

    fn used_event_address(&self) -> u64 {
        self.avail_address() + 4 + 2 * u64::from(self.size)
    }

    fn avail_event_address(&self) -> u64 {
        self.used_address() + 4 + 8 * u64::from(self.size)
    }
}
