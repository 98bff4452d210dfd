//! A guest's memory that a target's driver writes and its device reaches: some pages from one address on.

use std::sync::Arc;

use guest_memory::{AnonymousMapping, Budget, MapCache, Mapping, PlainMemory};
use vm_memory::Bytes;

/// Guest address of the first byte.
pub(crate) const BASE: u64 = 0x4000_0000;

/// Flags of a descriptor (virtio 1.2 §2.7.5).
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

/// The guest's memory, as the guest has it. Places in it are offsets from [`BASE`].
pub(crate) struct Memory {
    mapping: Arc<AnonymousMapping>,
    size: usize,
}

impl Memory {
    /// Zeroed memory of whole pages, and the way of a device to it.
    pub(crate) fn new(size: usize) -> (Self, Arc<MapCache>) {
        let mapping = Arc::new(AnonymousMapping::new(size).expect("there is memory"));
        let plain = PlainMemory::new([(BASE, Arc::clone(&mapping) as Arc<dyn Mapping>)]).expect("whole pages");
        (Self { mapping, size }, MapCache::new(plain, Budget::default()))
    }

    /// All of it.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let mut all = vec![0; self.size];
        self.mapping.memory().copy_to(&mut all[..]);
        all
    }

    /// Writes at an offset; what does not fit is left out.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let fits = bytes.len().min(self.size.saturating_sub(at));
        if fits > 0 {
            self.mapping.memory().write_slice(&bytes[..fits], at).expect("it fits");
        }
    }

    pub(crate) fn u16_at(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.mapping.memory().read_slice(&mut bytes, at).expect("within memory");
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

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
