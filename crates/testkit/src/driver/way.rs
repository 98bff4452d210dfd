//! By which way devices reach a guest's memory.

use std::collections::HashMap;

use guest_memory::{Access, Sources};

use crate::grants::FakeGrants;
use crate::memory::FakeForeignMemory;

/// VIRTIO_F_ACCESS_PLATFORM: the driver does not name memory by its plain address.
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// By which way a guest's devices reach its memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// They map its frames, any of them.
    Frames,
    /// They reach what it grants, and nothing else: rings as long as they are in use, buffers anew for each request.
    Grants,
    /// They have both ways; every other buffer is granted.
    Mixed,
}

/// Names memory to devices.
pub(super) struct Lender {
    way: Way,
    grants: FakeGrants,
    /// What is granted, by what it was granted as.
    lent: HashMap<u64, u64>,
    /// Times that something was lent.
    times: u64,
}

impl Way {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Frames, Self::Grants, Self::Mixed];

    pub(super) fn of(self, memory: &FakeForeignMemory) -> (Lender, Sources) {
        let grants = FakeGrants::new(memory.clone());
        let sources = match self {
            Self::Frames => memory.clone().into(),
            Self::Grants => Sources::grants(grants.clone()),
            Self::Mixed => Sources::from(memory.clone()).with_grants(grants.clone()),
        };
        (Lender { way: self, grants, lent: HashMap::new(), times: 0 }, sources)
    }
}

impl Lender {
    /// The features that this takes.
    pub(super) fn features(&self) -> u64 {
        if self.way == Way::Frames { 0 } else { ACCESS_PLATFORM }
    }

    /// What a device finds the `len` bytes at `address` by.
    pub(super) fn lend(&mut self, address: u64, len: usize, access: Access) -> u64 {
        self.times += 1;
        let is_granted = match self.way {
            Way::Frames => false,
            Way::Grants => true,
            Way::Mixed => self.times.is_multiple_of(2),
        };
        if !is_granted {
            return address;
        }
        let granted = self.grants.grant(address, len, access);
        self.lent.insert(granted, address);
        granted
    }

    /// Takes back what was lent as `lent`, and returns its address. Panics if the device is not done with it.
    pub(super) fn take_back(&mut self, lent: u64, len: usize) -> u64 {
        let Some(address) = self.lent.remove(&lent) else { return lent };
        self.grants.end_access(lent, len).expect("a device is done with what it has given back");
        address
    }
}
