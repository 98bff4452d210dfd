//! The guest's memory: a queue, tables for indirect descriptors, and room for requests.

use std::sync::Arc;

use guest_memory::{AnonymousMapping, Budget, MapCache, Mapping, PlainMemory};
use vm_memory::Bytes;

use crate::moves::{Address, Descriptor, Length};

/// Guest address of the first byte.
pub(crate) const BASE: u64 = 0x4000_0000;
pub(crate) const SIZE: usize = 192 << 10;

/// Entries of the queue.
pub(crate) const QUEUE: u16 = 16;

/// Offsets. What lies between is nobody's.
pub(crate) const DESCRIPTORS: usize = 0;
pub(crate) const AVAILABLE: usize = 0x1000;
pub(crate) const USED: usize = 0x2000;
pub(crate) const TABLES: usize = 0x3000;
/// From here on there are headers, data and statuses.
pub(crate) const DATA: usize = 0x8000;

/// Bytes of the used ring, `avail_event` included.
pub(crate) const USED_LEN: usize = 4 + 8 * QUEUE as usize + 2;

/// Descriptors of an indirect table, of which there are four.
pub(crate) const TABLE: usize = 32;
const TABLE_COUNT: usize = 4;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// The guest's memory, as the guest has it.
pub(crate) struct Memory(Arc<AnonymousMapping>);

impl Memory {
    /// New memory, and the way of a device to it.
    pub(crate) fn new() -> (Self, Arc<MapCache>) {
        let mapping = Arc::new(AnonymousMapping::new(SIZE).expect("there is memory"));
        let plain = PlainMemory::new([(BASE, Arc::clone(&mapping) as Arc<dyn Mapping>)]).expect("whole pages");
        let memory = Self(mapping);
        // Nothing that a device writes is what was there.
        memory.write(DATA, &[0xee; SIZE - DATA]);
        (memory, MapCache::new(plain, Budget::default()))
    }

    /// All of it.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let mut all = vec![0; SIZE];
        self.0.memory().copy_to(&mut all[..]);
        all
    }

    /// Writes at an offset; what does not fit is left out.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let fits = bytes.len().min(SIZE.saturating_sub(at));
        if fits > 0 {
            self.0.memory().write_slice(&bytes[..fits], at).expect("it fits");
        }
    }

    pub(crate) fn u16_at(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.0.memory().read_slice(&mut bytes, at).expect("within memory");
        u16::from_le_bytes(bytes)
    }

    /// Writes a descriptor at an offset.
    pub(crate) fn put(&self, at: usize, descriptor: Raw) {
        let Raw { addr, len, flags, next } = descriptor;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(at, &bytes);
    }

    /// Makes a chain available.
    pub(crate) fn publish(&self, head: u16) {
        let index = self.u16_at(AVAILABLE + 2);
        self.write(AVAILABLE + 4 + 2 * usize::from(index % QUEUE), &head.to_le_bytes());
        self.write(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Zeroes the queue.
    pub(crate) fn clear_queue(&self) {
        self.write(0, &[0; TABLES]);
    }
}

/// Offset of an indirect table.
pub(crate) fn table(number: u8) -> usize {
    TABLES + usize::from(number) % TABLE_COUNT * TABLE * 16
}

impl Descriptor {
    /// As it is to lie in memory.
    pub(crate) fn raw(self) -> Raw {
        let addr = match self.addr {
            Address::Data(at) => BASE + DATA as u64 + u64::from(at),
            Address::Table(number) => BASE + table(number) as u64,
            Address::Memory(at) => BASE + u64::from(at) % SIZE as u64,
            Address::Any(addr) => addr,
        };
        let len = match self.len {
            Length::Header => 16,
            Length::Sectors(count) => u32::from(count % 16) * 512,
            Length::Small(len) => len.into(),
            Length::Any(len) => len,
        };
        Raw { addr, len, flags: u16::from(self.flags % 8), next: u16::from(self.next % 20) }
    }
}

/// What a descriptor in `memory` says; nothing beyond the end.
pub(crate) fn descriptor(memory: &[u8], at: usize) -> Option<Raw> {
    let bytes = memory.get(at..at.checked_add(16)?)?;
    Some(Raw {
        addr: u64::from_le_bytes(bytes[..8].try_into().ok()?),
        len: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
        flags: u16::from_le_bytes(bytes[12..14].try_into().ok()?),
        next: u16::from_le_bytes(bytes[14..].try_into().ok()?),
    })
}
