//! What is where in the guest's memory: a queue, tables for indirect descriptors, and room for requests.

use crate::disk::moves::{Address, Descriptor, Length};
use crate::guest::{BASE, Memory, Raw};

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

/// Makes a chain available.
pub(crate) fn publish(memory: &Memory, head: u16) {
    let index = memory.u16_at(AVAILABLE + 2);
    memory.write(AVAILABLE + 4 + 2 * usize::from(index % QUEUE), &head.to_le_bytes());
    memory.write(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
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
