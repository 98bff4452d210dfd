//! The guest's memory, as a driver of `virtio_drivers` gets at it.
#![expect(unsafe_code, reason = "implements virtio_drivers::Hal, which lends guest memory by pointer")]

use std::{cell::RefCell, ptr::NonNull, slice};

use guest_memory::{Access, Sources};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::{Lender, Way};
use crate::memory::FakeForeignMemory;

thread_local! {
    /// [`Hal`] has no `self`: a guest is what runs on a thread.
    static GUEST: RefCell<Option<Arena>> = const { RefCell::new(None) };
}

/// Pages that drivers can have.
struct Arena {
    memory: FakeForeignMemory,
    lender: Lender,
    next: u64,
    end: u64,
    /// What was given back: address and number of pages.
    free: Vec<(u64, usize)>,
}

/// The memory of the guest that runs on the calling thread.
///
/// Buffers are shared by copying them into guest memory and back, so that a device that reads from
/// or writes to the wrong place or at the wrong time is found out. Each lies in its pages as the driver's own does.
pub struct GuestHal;

impl GuestHal {
    /// Makes the calling thread a guest, whose drivers take their memory from `start` to `end`, whole
    /// pages that ballooning leaves alone. Devices map them.
    pub fn boot(memory: FakeForeignMemory, start: u64, end: u64) {
        // Who calls this has other means to reach the memory than these.
        let _sources = Self::boot_by(Way::Frames, memory, start, end);
    }

    /// The same, with devices that reach memory by `way`, which is what is returned.
    pub fn boot_by(way: Way, memory: FakeForeignMemory, start: u64, end: u64) -> Sources {
        assert!(start > 0, "drivers take address 0 for a failure");
        let lender = Lender::new(way, memory.clone());
        let sources = lender.sources();
        GUEST.set(Some(Arena { memory, lender, next: start, end, free: Vec::new() }));
        sources
    }

    /// Features that a driver takes because of what it runs on, whatever its device is.
    pub(super) fn platform_features() -> u64 {
        GUEST.with_borrow(|guest| guest.as_ref().map_or(0, |guest| guest.lender.features()))
    }
}

fn with_arena<T>(f: impl FnOnce(&mut Arena) -> T) -> T {
    GUEST.with_borrow_mut(|guest| f(guest.as_mut().expect("the thread is a guest: GuestHal::boot")))
}

impl Arena {
    fn take(&mut self, pages: usize) -> u64 {
        if let Some(place) = self.free.iter().position(|(_, free)| *free == pages) {
            return self.free.swap_remove(place).0;
        }
        let address = self.next;
        self.next += (pages * PAGE_SIZE) as u64;
        assert!(self.next <= self.end, "the guest's drivers use more memory than the test gave them");
        address
    }
}

/// Where in its first page a buffer starts, and how many it lies in.
fn pages_of(buffer: NonNull<[u8]>) -> (u64, usize) {
    let offset = buffer.addr().get() % PAGE_SIZE;
    (offset as u64, (offset + buffer.len()).div_ceil(PAGE_SIZE))
}

/// What a device does with a buffer of this direction.
fn access_for(direction: BufferDirection) -> Access {
    match direction {
        BufferDirection::DriverToDevice => Access::Read,
        BufferDirection::DeviceToDriver | BufferDirection::Both => Access::Write,
    }
}

// SAFETY: `dma_alloc` lends pages of the guest's memory, mapped as long as `GUEST` holds it, page aligned, zeroed, and
// lent to nobody else until `dma_dealloc`.
unsafe impl Hal for GuestHal {
    /// What a driver keeps for long is writable for the device whatever it is for, as Linux grants coherent memory.
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        with_arena(|arena| {
            let (address, len) = (arena.take(pages), pages * PAGE_SIZE);
            arena.memory.write(address, &vec![0; len]);
            let memory = arena.memory.slice(address, len);
            let pointer = NonNull::new(memory.ptr_guard_mut().as_ptr()).expect("memory is not at address 0");
            (arena.lender.lend(address, len, Access::Write), pointer)
        })
    }

    unsafe fn dma_dealloc(lent: PhysAddr, _memory: NonNull<u8>, pages: usize) -> i32 {
        with_arena(|arena| {
            let address = arena.lender.take_back(lent, pages * PAGE_SIZE);
            arena.free.push((address, pages));
        });
        0
    }

    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("for PCI, which this guest has not")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        with_arena(|arena| {
            let (offset, pages) = pages_of(buffer);
            let address = arena.take(pages) + offset;
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller's buffer is valid and nobody writes to it during the call.
                let bytes = unsafe { slice::from_raw_parts(buffer.as_ptr().cast(), buffer.len()) };
                arena.memory.write(address, bytes);
            }
            arena.lender.lend(address, buffer.len(), access_for(direction))
        })
    }

    unsafe fn unshare(lent: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        with_arena(|arena| {
            let (offset, pages) = pages_of(buffer);
            let address = arena.lender.take_back(lent, buffer.len());
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's buffer is valid and nobody else uses it during the call.
                let bytes = unsafe { slice::from_raw_parts_mut(buffer.as_ptr().cast(), buffer.len()) };
                arena.memory.read(address, bytes);
            }
            arena.free.push((address - offset, pages));
        });
    }
}
