//! Feature negotiation (virtio 1.2 §2.2): what is offered, what was accepted, whether that will do.

use serde::{Deserialize, Serialize};
use virtio_backend::features::{are_acceptable, offered};
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_RESET};

pub(crate) const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// What a driver passes are not its own addresses but those that its platform gave it for the device (§6): grants.
pub(crate) const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;

/// The feature registers.
#[derive(Debug)]
pub(crate) struct Features {
    offered: u64,
    /// The device cannot work without these.
    required: u64,
    driver: Accepted,
}

/// What the driver has written.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accepted {
    device_sel: u32,
    driver_sel: u32,
    accepted: u64,
    /// The driver claimed a bit above 63, where none is offered. Only a reset takes that back.
    beyond: bool,
}

impl Features {
    pub(crate) fn new(device_features: u64) -> Self {
        Self { offered: offered(device_features) | RING_RESET, required: 0, driver: Accepted::default() }
    }

    /// What the driver has written, to be noted.
    pub(crate) fn saved(&self) -> Accepted {
        self.driver
    }

    /// The driver has written this, to a former process.
    pub(crate) fn restore(&mut self, driver: Accepted) {
        self.driver = driver;
    }

    /// These, with [`ACCESS_PLATFORM`], without which the device may not be able to work at all.
    #[must_use]
    pub(crate) fn with_platform_access(self, is_required: bool) -> Self {
        let required = if is_required { ACCESS_PLATFORM } else { 0 };
        Self { offered: self.offered | ACCESS_PLATFORM, required, ..self }
    }

    pub(crate) fn reset(&mut self) {
        self.driver = Accepted::default();
    }

    pub(crate) fn select_offered(&mut self, word: u32) {
        self.driver.device_sel = word;
    }

    pub(crate) fn select_accepted(&mut self, word: u32) {
        self.driver.driver_sel = word;
    }

    /// The selected 32 bits of what is offered.
    pub(crate) fn offered_word(&self) -> u32 {
        let [low, high] = halves(self.offered);
        match self.driver.device_sel {
            0 => low,
            1 => high,
            _ => 0,
        }
    }

    /// The driver accepts these of the selected 32 bits.
    pub(crate) fn accept_word(&mut self, word: u32) {
        let Accepted { driver_sel, accepted, beyond, .. } = &mut self.driver;
        let [low, high] = halves(*accepted);
        match driver_sel {
            0 => *accepted = whole([word, high]),
            1 => *accepted = whole([low, word]),
            _ => *beyond |= word != 0,
        }
    }

    /// The accepted features, if they are a set that the transport can work with.
    pub(crate) fn acceptable(&self) -> Option<u64> {
        let Accepted { accepted, beyond, .. } = self.driver;
        let is_acceptable = are_acceptable(accepted, self.offered) && !beyond && self.missing() == 0;
        is_acceptable.then_some(accepted)
    }

    /// What is required and was not accepted.
    pub(crate) fn missing(&self) -> u64 {
        self.required & !self.driver.accepted
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.driver.accepted
    }

    /// Whether all these bits were accepted.
    pub(crate) fn has(&self, bits: u64) -> bool {
        self.driver.accepted & bits == bits
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
    use virtio_backend::features::VERSION_1;

    fn accepting(words: &[(u32, u32)]) -> Features {
        let mut features = Features::new(1 << 9);
        for &(word, bits) in words {
            features.select_accepted(word);
            features.accept_word(bits);
        }
        features
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
    fn platform_access_can_be_offered_and_can_be_required() {
        let offering = |is_required| {
            let mut features = Features::new(0).with_platform_access(is_required);
            features.select_offered(1);
            assert_eq!(features.offered_word() & 2, 2);
            features.select_accepted(1);
            features
        };
        for (is_required, word, will_do) in [(false, 1, true), (false, 3, true), (true, 1, false), (true, 3, true)] {
            let mut features = offering(is_required);
            features.accept_word(word);
            assert_eq!(features.acceptable().is_some(), will_do, "{is_required} {word}");
        }
    }

    #[test]
    fn reset_forgets_all_but_the_offer() {
        let mut features = accepting(&[(0, 1), (1, 1), (7, 1)]);
        features.select_offered(1);
        features.reset();
        features.accept_word(1 << 9);
        assert_eq!(
            (features.saved(), features.acceptable()),
            (Accepted { accepted: 1 << 9, ..Accepted::default() }, None)
        );
    }
}
