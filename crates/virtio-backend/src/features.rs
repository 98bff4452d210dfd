//! Feature bits (virtio 1.2 §2.2) that are not the device's: what rings can do, and what makes a negotiated set whole.
//! The same for every transport.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Without it a driver would use the legacy interface, which is not here.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Both sides say by an index when they want to be notified (§2.7.7).
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// What rings offer whatever device and transport are. None depends on another.
pub const RING_FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The bits that §2.2 leaves to the device type: 0 to 23 and 50 up.
pub const DEVICE_FEATURES: u64 = !((1 << 50) - (1 << 24));

/// What a transport offers of a device, beside its own bits: those of rings, and those that are a device's to offer.
pub fn offered(device_features: u64) -> u64 {
    RING_FEATURES | device_features & DEVICE_FEATURES
}

/// Whether a driver may accept these of the features that it was offered. The device has yet to agree:
/// [`Backend::accepts`](crate::Backend::accepts).
pub fn are_acceptable(accepted: u64, offered: u64) -> bool {
    accepted & !offered == 0 && accepted & VERSION_1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_cannot_offer_the_bits_of_rings_and_transport() {
        assert_eq!(offered(u64::MAX), RING_FEATURES | DEVICE_FEATURES);
        assert_eq!(offered(1 << 33 | 1 << 3), RING_FEATURES | 1 << 3);
    }

    #[test]
    fn a_set_without_version_1_or_beyond_the_offer_will_not_do() {
        assert!(are_acceptable(VERSION_1 | 1 << 9, offered(1 << 9)));
        assert!(!are_acceptable(1 << 9, offered(1 << 9)));
        assert!(!are_acceptable(VERSION_1 | 1 << 8, offered(1 << 9)));
    }
}
