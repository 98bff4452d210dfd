//! By which way devices reach a guest's memory, and what a driver does for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_memory::{Access, Sources};

use super::{Descriptor, RawQueue};
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

impl Way {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Frames, Self::Grants, Self::Mixed];
}

/// Names a guest's memory to its devices, and takes it back from them.
pub struct Lender {
    way: Way,
    memory: FakeForeignMemory,
    grants: FakeGrants,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    /// What is granted, by what it was granted as.
    granted: HashMap<u64, u64>,
    /// Times that something was lent.
    times: u64,
}

impl Lender {
    /// A guest whose devices reach its memory by `way`.
    pub fn new(way: Way, memory: FakeForeignMemory) -> Self {
        let grants = FakeGrants::new(memory.clone());
        Self { way, memory, grants, ledger: Mutex::default() }
    }

    /// What devices reach the memory by. Of what is granted more than a page is mapped, for tests to see both.
    pub fn sources(&self) -> Sources {
        let sources = match self.way {
            Way::Frames => self.memory.clone().into(),
            Way::Grants => Sources::grants(self.grants.clone()),
            Way::Mixed => Sources::from(self.memory.clone()).with_grants(self.grants.clone()),
        };
        sources.copying_up_to(4096)
    }

    /// The features that this takes, whatever the device is.
    pub fn features(&self) -> u64 {
        if self.way == Way::Frames { 0 } else { ACCESS_PLATFORM }
    }

    /// The guest's grant table, empty if nothing is granted.
    pub fn grants(&self) -> &FakeGrants {
        &self.grants
    }

    /// What a device finds the `len` bytes at `address` by.
    pub fn lend(&self, address: u64, len: usize, access: Access) -> u64 {
        let mut ledger = self.ledger();
        ledger.times += 1;
        let is_granted = match self.way {
            Way::Frames => false,
            Way::Grants => true,
            Way::Mixed => ledger.times.is_multiple_of(2),
        };
        if !is_granted {
            return address;
        }
        let granted = self.grants.grant(address, len, access);
        ledger.granted.insert(granted, address);
        granted
    }

    /// Takes back what was lent as `lent`, and returns its address. Panics if the device is not done with it.
    pub fn take_back(&self, lent: u64, len: usize) -> u64 {
        let Some(address) = self.ledger().granted.remove(&lent) else { return lent };
        self.grants.end_access(lent, len).expect("a device is done with what it has given back");
        address
    }

    /// Lends a buffer for what its descriptor says: the descriptor for the device.
    #[must_use]
    pub fn lend_buffer(&self, buffer: Descriptor) -> Descriptor {
        let access = if buffer.is_writable() { Access::Write } else { Access::Read };
        Descriptor { addr: self.lend(buffer.addr, len_of(buffer), access), ..buffer }
    }

    /// Takes back buffers that were lent one by one. Panics if the device is not done with them.
    pub fn take_back_buffers(&self, lent: &[Descriptor]) {
        for buffer in lent {
            self.take_back(buffer.addr, len_of(*buffer));
        }
    }

    /// Lends a queue.
    #[must_use]
    pub fn lend_queue(&self, queue: RawQueue) -> RawQueue {
        let lent = self.lend(queue.desc_table(), queue.bytes(), Access::Write);
        queue.at(lent)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn len_of(buffer: Descriptor) -> usize {
    usize::try_from(buffer.len).expect("a 64-bit host")
}
