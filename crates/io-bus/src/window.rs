//! Where a device answers.

use std::fmt;

/// An address space of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Guest-physical addresses.
    Mmio,
    /// x86 I/O ports, 0 to 0xffff.
    PortIo,
    /// PCI configuration space: segment, bus, device and function in bits 63 to 32, register below.
    PciConfig,
}

/// A non-empty range of addresses in one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    space: Space,
    first: u64,
    last: u64,
}

/// Why a range is no window.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WindowError {
    /// A window has at least one byte.
    #[error("Window at {start:#x} has no bytes")]
    Empty {
        /// Where it would have started.
        start: u64,
    },
    /// The last byte's address does not fit 64 bits.
    #[error("Window of {len:#x} bytes at {start:#x} runs past the end of its address space")]
    Wraps {
        /// Where it starts.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
}

impl Window {
    /// The `len` bytes from `start` on.
    ///
    /// # Errors
    /// `len` is zero, or the range does not end within 64 bits.
    pub fn new(space: Space, start: u64, len: u64) -> Result<Self, WindowError> {
        let above_first = len.checked_sub(1).ok_or(WindowError::Empty { start })?;
        let last = start.checked_add(above_first).ok_or(WindowError::Wraps { start, len })?;
        Ok(Self { space, first: start, last })
    }

    /// The space it lies in.
    pub fn space(&self) -> Space {
        self.space
    }

    /// Its lowest address.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Its highest address, inclusive.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What no other window has.
    pub(crate) fn key(&self) -> (Space, u64) {
        (self.space, self.first)
    }

    /// The offset of `addr` in this window, if all `len` bytes from there on lie in it.
    pub(crate) fn offset_of(&self, addr: u64, len: usize) -> Option<u64> {
        let above_first = u64::try_from(len).ok()?.checked_sub(1)?;
        let last = addr.checked_add(above_first)?;
        (self.first <= addr && last <= self.last).then(|| addr - self.first)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:#x}-{:#x}", self.space, self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_wrapping_range_is_no_window() {
        assert_eq!(Window::new(Space::Mmio, 7, 0), Err(WindowError::Empty { start: 7 }));
        assert!(matches!(Window::new(Space::Mmio, u64::MAX, 2), Err(WindowError::Wraps { .. })));
        assert!(Window::new(Space::Mmio, u64::MAX, 1).is_ok());
    }

    #[test]
    fn an_offset_exists_only_for_an_access_that_lies_wholly_inside() {
        let window = Window::new(Space::Mmio, 0x1000, 0x200).unwrap();
        assert_eq!(window.offset_of(0x1000, 4), Some(0));
        assert_eq!(window.offset_of(0x11fc, 4), Some(0x1fc));
        assert_eq!(window.offset_of(0x11fd, 4), None, "straddles the end");
        assert_eq!(window.offset_of(0xffe, 4), None, "straddles the start");
        assert_eq!(window.offset_of(0x1000, 0), None, "touches nothing");
        assert_eq!(window.offset_of(u64::MAX, 8), None, "wraps");
    }
}
