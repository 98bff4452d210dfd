//! The memory that a backend has of us: shadow rings and data on their way. It never has any other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use guest_memory::{Mapping, SharedMemory};
use virtio_backend::Fault;
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

/// Where the memory starts, in the addresses that a backend is told: of rings and of data alike. It is not zero, which
/// some take for none.
pub(crate) const BASE: u64 = 1 << 32;

/// What a backend is told of the byte at `at`.
pub(crate) fn address(at: usize) -> u64 {
    BASE + at as u64
}

/// Memory shared with a backend, which can change it at any time.
pub(crate) struct Bounce(SharedMemory);

impl Bounce {
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        Ok(Self(SharedMemory::new("vhost-user", len)?))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.memory().len()
    }

    pub(crate) fn slice(&self, at: usize, len: usize) -> Result<VolatileSlice<'_>, Fault> {
        self.0.memory().subslice(at, len).map_err(|_elsewhere| beyond(at))
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.slice(at, bytes.len())?.copy_from(bytes);
        Ok(())
    }

    pub(crate) fn load<T: AtomicAccess>(&self, at: usize, order: Ordering) -> Result<T, Fault> {
        self.0.memory().load(at, order).map_err(|_elsewhere| beyond(at))
    }

    pub(crate) fn store<T: AtomicAccess>(&self, at: usize, value: T, order: Ordering) -> Result<(), Fault> {
        self.0.memory().store(value, at, order).map_err(|_elsewhere| beyond(at))
    }
}

impl AsFd for Bounce {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn beyond(at: usize) -> Fault {
    Fault::Bug(format!("byte {at} is beyond the memory shared with the backend"))
}
