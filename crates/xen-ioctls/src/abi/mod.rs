//! Structures and numbers, a file per header. `tests/layout.rs` compares them with the C headers.

pub mod dm_op;
pub mod ioreq;
pub mod linux_evtchn;
pub mod linux_gntdev;
pub mod linux_privcmd;
pub mod memory;

/// An ioctl number made as these drivers make theirs: no direction bits, unlike most of Linux.
pub(crate) const fn ioc_none(group: u8, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14, "an ioctl's argument is below 16 KiB");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let size = size as u32;
    size << 16 | (group as u32) << 8 | number as u32
}

/// An ioctl number with the direction bit of a write to the kernel.
pub(crate) const fn ioc_write(group: u8, number: u8, size: usize) -> u32 {
    1 << 30 | ioc_none(group, number, size)
}
