//! Where libxl puts a guest's virtio devices (libxl_arm.c, and arch-arm.h of Xen's public headers).
//!
//! They get addresses and interrupts in their order: first the virtio disks of `disk=[]`, then those of `virtio=[]`.

use std::ops::RangeInclusive;

use crate::model::{Place, WINDOW_BYTES};

/// `GUEST_VIRTIO_MMIO_BASE`. The area has room for 2048 devices, so that interrupts run out first.
const BASE: u64 = 0x0200_0000;

/// `GUEST_VIRTIO_MMIO_SPI_FIRST` to `GUEST_VIRTIO_MMIO_SPI_LAST`.
const IRQS: RangeInclusive<u32> = 33..=43;

/// How many virtio devices a guest can have.
pub(super) fn most() -> usize {
    IRQS.count()
}

/// The place of a guest's device `index`, from 0; `None` if there are too many.
pub(super) fn place(index: usize) -> Option<Place> {
    let irq = IRQS.clone().nth(index)?;
    Some(Place { base: BASE + WINDOW_BYTES * index as u64, irq })
}

/// The interrupts that `devices` devices have.
pub(super) fn irqs(devices: usize) -> impl Iterator<Item = u32> {
    IRQS.take(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_place_for_eleven_devices() {
        assert_eq!(place(0), Some(Place { base: 0x200_0000, irq: 33 }));
        assert_eq!(place(10), Some(Place { base: 0x200_1400, irq: 43 }));
        assert_eq!((place(11), most()), (None, 11));
        assert_eq!(irqs(2).collect::<Vec<_>>(), [33, 34]);
    }
}
