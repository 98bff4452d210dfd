//! What a driver can do, as bytes spell it.

use arbitrary::Arbitrary;

use super::rig::{DATA, SIZE, table};
use crate::guest::{BASE, Raw};

/// One thing that happens.
#[derive(Arbitrary, Debug)]
pub(super) enum Move<M, E> {
    /// An honest chain: a message, and room for so many bytes behind it.
    Say { queue: u8, message: M, buffer: Buffer, room: u16, kick: bool },
    /// The host's end does something.
    Happen(E),
    /// What no honest driver does, or what says nothing.
    Wild(Wild),
}

/// How a chain lies in memory.
#[derive(Arbitrary, Clone, Copy, Debug, Default)]
pub(crate) struct Buffer {
    /// In how many descriptors each part is.
    pub(crate) cuts: u8,
    /// They are in a table.
    pub(crate) indirect: bool,
}

/// What any driver can do to its rings.
#[derive(Arbitrary, Debug)]
pub(super) enum Wild {
    Descriptor { queue: u8, slot: u8, descriptor: Descriptor },
    Indirect { table: u8, slot: u8, descriptor: Descriptor },
    Publish { queue: u8, head: u8 },
    Jump { queue: u8, by: u16 },
    Scribble { at: u32, value: u64 },
    Kick { queue: u8 },
    WriteConfig { offset: u8, data: [u8; 8], len: u8 },
    ReadConfig { offset: u8, len: u8 },
    Reset { features: u64 },
}

/// A descriptor (§2.7.5) that may say anything.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Descriptor {
    addr: Address,
    len: u16,
    odd_len: Option<u32>,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Data(u16),
    Table(u8),
    Memory(u32),
    Any(u64),
}

impl Descriptor {
    /// As it is to lie in memory.
    pub(super) fn raw(self) -> Raw {
        let addr = match self.addr {
            Address::Data(at) => BASE + (DATA + usize::from(at) % (SIZE - DATA)) as u64,
            Address::Table(number) => BASE + table(number) as u64,
            Address::Memory(at) => BASE + u64::from(at) % SIZE as u64,
            Address::Any(addr) => addr,
        };
        let len = match self.addr {
            Address::Table(_) => u32::from(self.len % 34) * 16,
            _ => u32::from(self.len % 4096),
        };
        Raw {
            addr,
            len: self.odd_len.unwrap_or(len),
            flags: u16::from(self.flags % 8),
            next: u16::from(self.next % 20),
        }
    }
}
