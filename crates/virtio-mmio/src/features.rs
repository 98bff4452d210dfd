//! Feature negotiation (virtio 1.2 §2.2): what is offered, what was accepted, whether that will do.

use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Without it a driver would use the legacy interface, which is not here.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

pub(crate) const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// What rings and transport offer whatever the device is. None depends on another.
const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | RING_RESET | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The bits that §2.2 leaves to the device type: 0 to 23 and 50 up.
const DEVICE_FEATURES: u64 = !((1 << 50) - (1 << 24));

/// The feature registers.
#[derive(Debug)]
pub(crate) struct Features {
    offered: u64,
    device_sel: u32,
    driver_sel: u32,
    accepted: u64,
    /// The driver claimed a bit above 63, where none is offered. Only a reset takes that back.
    accepted_beyond: bool,
}

impl Features {
    pub(crate) fn new(device_features: u64) -> Self {
        Self {
            offered: TRANSPORT_FEATURES | device_features & DEVICE_FEATURES,
            device_sel: 0,
            driver_sel: 0,
            accepted: 0,
            accepted_beyond: false,
        }
    }

    pub(crate) fn reset(&mut self) {
        let Self { offered: _, device_sel, driver_sel, accepted, accepted_beyond } = self;
        (*device_sel, *driver_sel) = (0, 0);
        *accepted = 0;
        *accepted_beyond = false;
    }

    pub(crate) fn select_offered(&mut self, word: u32) {
        self.device_sel = word;
    }

    pub(crate) fn select_accepted(&mut self, word: u32) {
        self.driver_sel = word;
    }

    /// The selected 32 bits of what is offered.
    pub(crate) fn offered_word(&self) -> u32 {
        let [low, high] = halves(self.offered);
        match self.device_sel {
            0 => low,
            1 => high,
            _ => 0,
        }
    }

    /// The driver accepts these of the selected 32 bits.
    pub(crate) fn accept_word(&mut self, word: u32) {
        let [low, high] = halves(self.accepted);
        match self.driver_sel {
            0 => self.accepted = whole([word, high]),
            1 => self.accepted = whole([low, word]),
            _ => self.accepted_beyond |= word != 0,
        }
    }

    /// The accepted features, if they are a set that the transport can work with.
    pub(crate) fn acceptable(&self) -> Option<u64> {
        let is_offered = self.accepted & !self.offered == 0 && !self.accepted_beyond;
        (is_offered && self.accepted & VERSION_1 != 0).then_some(self.accepted)
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether all these bits were accepted.
    pub(crate) fn has(&self, bits: u64) -> bool {
        self.accepted & bits == bits
    }
}

/// The low and the high half of a 64-bit value, as registers show it.
#[expect(clippy::cast_possible_truncation, reason = "the other half is beside it")]
pub(crate) fn halves(whole: u64) -> [u32; 2] {
    [whole as u32, (whole >> 32) as u32]
}

/// The value of which these are the low and the high half.
pub(crate) fn whole([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(words: &[(u32, u32)]) -> Features {
        let mut features = Features::new(1 << 9);
        for &(word, bits) in words {
            features.select_accepted(word);
            features.accept_word(bits);
        }
        features
    }

    #[test]
    fn a_device_cannot_offer_the_bits_of_rings_and_transport() {
        assert_eq!(Features::new(u64::MAX).offered, TRANSPORT_FEATURES | DEVICE_FEATURES);
        assert_eq!(Features::new(1 << 33 | 1 << 3).offered, TRANSPORT_FEATURES | 1 << 3);
    }

    #[test]
    fn words_beyond_the_second_offer_nothing() {
        let mut features = Features::new(1);
        for word in [2, 3, u32::MAX] {
            features.select_offered(word);
            assert_eq!(features.offered_word(), 0);
        }
    }

    #[test]
    fn any_offered_set_with_version_1_will_do() {
        assert_eq!(accepting(&[(1, 1)]).acceptable(), Some(VERSION_1));
        assert_eq!(accepting(&[(0, 1 << 9), (1, 1)]).acceptable(), Some(VERSION_1 | 1 << 9));
        assert_eq!(accepting(&[(1, 1), (2, 0)]).acceptable(), Some(VERSION_1));
    }

    #[test]
    fn a_set_without_version_1_or_beyond_the_offer_will_not() {
        assert_eq!(accepting(&[(0, 1 << 9)]).acceptable(), None);
        assert_eq!(accepting(&[(0, 1 << 8), (1, 1)]).acceptable(), None);
        assert_eq!(accepting(&[(1, 1), (u32::MAX, 1)]).acceptable(), None);
    }

    #[test]
    fn reset_forgets_all_but_the_offer() {
        let mut features = accepting(&[(0, 1), (1, 1), (7, 1)]);
        features.select_offered(1);
        features.reset();
        features.accept_word(1 << 9);
        assert_eq!((features.accepted, features.accepted_beyond, features.device_sel), (1 << 9, false, 0));
    }
}
