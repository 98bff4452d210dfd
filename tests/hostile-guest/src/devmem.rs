//! A guest's machine: registers by `/dev/mem`, and a huge page whose address the kernel tells root.
#![expect(unsafe_code, reason = "registers and memory that a device sees are reached by address")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use crate::Machine;
use crate::machine::MEMORY;
use crate::registers::WINDOW_END;

const PAGE: u64 = 4096;
/// How many huge pages there are to be.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// One device of the guest.
pub struct DevMem {
    window: u64,
    registers: NonNull<u8>,
    memory: NonNull<u8>,
    address: u64,
}

impl DevMem {
    /// The device whose registers are at this guest address; no driver may use it.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn new(window: u64) -> io::Result<Self> {
        let memory = huge_page()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::SYNC.bits().cast_signed())
            .open("/dev/mem")?;
        let (start, within) = (window / PAGE * PAGE, window % PAGE);
        // SAFETY: a new mapping of a page of registers, which no memory of ours is in.
        let page = unsafe { map(&file, start) }?;
        // SAFETY: within the page that was just mapped: windows do not cross pages.
        let registers = unsafe { page.add(within as usize) };
        let address = address_of(memory)?;
        Ok(Self { window, registers, memory, address })
    }
}

/// # Safety
/// What is mapped is no memory that Rust knows.
unsafe fn map(file: &File, start: u64) -> io::Result<NonNull<u8>> {
    // SAFETY: a mapping at an address that the kernel chooses.
    let page = unsafe {
        mmap(
            std::ptr::null_mut(),
            PAGE as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file.as_fd(),
            start,
        )
    }?;
    NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at 0"))
}

/// A huge page of zeros, which stays where it is.
fn huge_page() -> io::Result<NonNull<u8>> {
    fs::write(HUGE_PAGES, "2")?;
    // SAFETY: a mapping at an address that the kernel chooses.
    let page = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            MEMORY,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::POPULATE,
        )
    }?;
    NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at 0"))
}

/// The guest address of a page of ours (the kernel's admin-guide/mm/pagemap.rst).
fn address_of(memory: NonNull<u8>) -> io::Result<u64> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, memory.addr().get() as u64 / PAGE * 8)?;
    let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
    if frame == 0 { Err(io::Error::other("the kernel does not tell where memory is")) } else { Ok(frame * PAGE) }
}

impl DevMem {
    /// Where the registers are, for who wants to touch them otherwise.
    #[must_use]
    pub fn registers(&self) -> *mut u8 {
        self.registers.as_ptr()
    }

    /// A place in the window.
    fn register<T>(&self, offset: u64) -> *mut T {
        assert!(offset as usize + size_of::<T>() <= WINDOW_END as usize);
        self.registers.as_ptr().wrapping_add(offset as usize).cast()
    }

    fn get<T: Into<u64>>(&self, offset: u64) -> u64 {
        let register = self.register::<T>(offset);
        // SAFETY: within the window; registers are no memory, so nothing else has a view of them.
        unsafe { register.read_volatile() }.into()
    }

    fn put<T>(&self, offset: u64, value: T) {
        let register = self.register::<T>(offset);
        // SAFETY: as in `get`.
        unsafe { register.write_volatile(value) };
    }

    /// A byte of our page.
    fn byte(&self, at: usize) -> *mut u8 {
        assert!(at < MEMORY);
        self.memory.as_ptr().wrapping_add(at)
    }
}

impl Machine for DevMem {
    fn read(&self, offset: u64, width: usize) -> u64 {
        match width {
            1 => self.get::<u8>(offset),
            2 => self.get::<u16>(offset),
            4 => self.get::<u32>(offset),
            _ => self.get::<u64>(offset),
        }
    }

    fn write(&self, offset: u64, width: usize, value: u64) {
        fence(Ordering::SeqCst);
        match width {
            1 => self.put(offset, value as u8),
            2 => self.put(offset, value as u16),
            4 => self.put(offset, value as u32),
            _ => self.put(offset, value),
        }
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn memory(&self) -> u64 {
        self.address
    }

    fn load(&self, at: u64, to: &mut [u8]) {
        fence(Ordering::SeqCst);
        for (at, byte) in (at as usize..).zip(to) {
            let from = self.byte(at);
            // SAFETY: within our page; the device may write there, hence volatile.
            *byte = unsafe { from.read_volatile() };
        }
    }

    fn store(&self, at: u64, from: &[u8]) {
        for (at, byte) in (at as usize..).zip(from) {
            let to = self.byte(at);
            // SAFETY: within our page; the device may read there, hence volatile.
            unsafe { to.write_volatile(*byte) };
        }
        fence(Ordering::SeqCst);
    }

    fn pause(&self) {
        thread::sleep(Duration::from_millis(1));
    }
}
