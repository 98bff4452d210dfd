//! The device status field (virtio 1.2 §2.1) and the steps of initialization (§3.1.1). Pure values.

use std::fmt;
use std::ops::BitOr;

/// A set of device status bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status(u32);

impl Status {
    /// The guest has found the device and recognized it.
    pub(crate) const ACKNOWLEDGE: Self = Self(1);
    /// The guest knows how to drive the device.
    pub(crate) const DRIVER: Self = Self(2);
    /// The driver is set up and ready to drive the device.
    pub(crate) const DRIVER_OK: Self = Self(4);
    /// Feature negotiation is complete.
    pub(crate) const FEATURES_OK: Self = Self(8);
    /// The device cannot go on until it is reset. The device's bit, not the driver's.
    pub(crate) const DEVICE_NEEDS_RESET: Self = Self(64);
    /// The driver has given up on the device.
    pub(crate) const FAILED: Self = Self(128);

    /// What stands in the register.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// What a device shows that is in use.
    pub(crate) const RUNNING: Self = Self(1 | 2 | 4 | 8);

    /// What a former process had noted, without bits that there are not.
    pub(crate) fn noted(bits: u32) -> Self {
        Self(bits & (Self::RUNNING.0 | HOPELESS.0))
    }

    /// What a driver wrote: any 32 bits.
    pub(crate) fn written(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether all bits of `other` are set.
    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the driver drives the device, and both believe in it.
    pub(crate) fn is_live(self) -> bool {
        self.has(Self::DRIVER_OK) && self.0 & HOPELESS.0 == 0
    }

    /// Whether a driver can have come here.
    pub(crate) fn is_reachable(self) -> bool {
        let steps = Self(self.0 & !HOPELESS.0);
        Self::default().after(steps, true) == steps
    }

    pub(crate) fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// What a driver's write of `written` makes of this status, if negotiation has come to
    /// `features_acceptable`.
    ///
    /// A driver may set bits and never clear them (§2.1.1). Those it leaves out stay, and those it
    /// may not set, or not yet, are not set.
    pub(crate) fn after(self, written: Self, features_acceptable: bool) -> Self {
        let mut status = self;
        for step in &STEPS {
            let is_refused = step.sets == Self::FEATURES_OK && !features_acceptable;
            if written.has(step.sets) && status.has(step.after) && !status.forbids(step) && !is_refused {
                status.insert(step.sets);
            }
        }
        status
    }

    /// After giving up, or being told to, a driver can only reset.
    fn forbids(self, step: &Step) -> bool {
        step.sets != Self::FAILED && self.0 & HOPELESS.0 != 0
    }
}

/// Bits that only a reset takes a device out of.
const HOPELESS: Status = Status(Status::DEVICE_NEEDS_RESET.0 | Status::FAILED.0);

/// A bit that a driver sets, and what must be set before.
struct Step {
    sets: Status,
    after: Status,
}

/// In the order of §3.1.1, so that one write can make several steps; FAILED may come at any time.
const STEPS: [Step; 5] = [
    Step { sets: Status::ACKNOWLEDGE, after: Status(0) },
    Step { sets: Status::DRIVER, after: Status::ACKNOWLEDGE },
    Step { sets: Status::FEATURES_OK, after: Status::DRIVER },
    Step { sets: Status::DRIVER_OK, after: Status::FEATURES_OK },
    Step { sets: Status::FAILED, after: Status(0) },
];

impl BitOr for Status {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How far a driver has come with its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverState {
    /// No driver since the last reset.
    Reset,
    /// The guest has found the device.
    Acknowledged,
    /// It has a driver for it.
    Driver,
    /// They agree on features.
    FeaturesOk,
    /// The device is in use.
    DriverOk,
    /// The device broke, or was broken, and waits for a reset.
    NeedsReset,
    /// The driver gave up.
    Failed,
}

impl From<Status> for DriverState {
    fn from(status: Status) -> Self {
        let states = [
            (Status::FAILED, Self::Failed),
            (Status::DEVICE_NEEDS_RESET, Self::NeedsReset),
            (Status::DRIVER_OK, Self::DriverOk),
            (Status::FEATURES_OK, Self::FeaturesOk),
            (Status::DRIVER, Self::Driver),
            (Status::ACKNOWLEDGE, Self::Acknowledged),
        ];
        states.into_iter().find(|(bit, _)| status.has(*bit)).map_or(Self::Reset, |(_, state)| state)
    }
}

impl fmt::Display for DriverState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reset => "reset",
            Self::Acknowledged => "acknowledged",
            Self::Driver => "driver",
            Self::FeaturesOk => "features-ok",
            Self::DriverOk => "driver-ok",
            Self::NeedsReset => "needs-reset",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY_TO_NEGOTIATE: Status = Status(1 | 2);
    const RUNNING: Status = Status::RUNNING;

    #[test]
    fn a_driver_gets_to_driver_ok_bit_by_bit_and_in_strides() {
        let mut status = Status::default();
        for bit in [Status::ACKNOWLEDGE, Status::DRIVER, Status::FEATURES_OK, Status::DRIVER_OK] {
            let wanted = status | bit;
            status = status.after(wanted, true);
            assert_eq!(status, wanted);
        }
        assert_eq!(Status::default().after(RUNNING, true), RUNNING);
    }

    #[test]
    fn no_step_is_made_without_those_before() {
        for written in 0..=255 {
            let status = Status::default().after(Status(written), true);
            assert!(!status.has(Status::DRIVER) || status.has(Status::ACKNOWLEDGE), "{written:#x}");
            assert!(!status.has(Status::FEATURES_OK) || status.has(Status::DRIVER), "{written:#x}");
            assert!(!status.has(Status::DRIVER_OK) || status.has(Status::FEATURES_OK), "{written:#x}");
        }
    }

    #[test]
    fn a_status_is_reachable_if_no_step_before_it_is_missing() {
        let reachable: Vec<_> = (0..16).filter(|bits| Status(*bits).is_reachable()).collect();
        assert_eq!(reachable, [0, 1, 3, 11, 15]);
        for hopeless in [Status::FAILED, Status::DEVICE_NEEDS_RESET] {
            assert!((hopeless | RUNNING).is_reachable() && !(hopeless | Status::DRIVER_OK).is_reachable());
        }
    }

    #[test]
    fn refused_features_stop_the_driver_at_driver() {
        assert_eq!(READY_TO_NEGOTIATE.after(RUNNING, false), READY_TO_NEGOTIATE);
    }

    #[test]
    fn bits_are_never_cleared_and_foreign_ones_never_set() {
        assert_eq!(RUNNING.after(Status::DRIVER, true), RUNNING);
        assert_eq!(READY_TO_NEGOTIATE.after(Status(!(4 | 8 | 128)), true), READY_TO_NEGOTIATE);
    }

    #[test]
    fn after_failed_or_needs_reset_nothing_moves_but_failed() {
        for hopeless in [Status::FAILED, Status::DEVICE_NEEDS_RESET] {
            let status = READY_TO_NEGOTIATE | hopeless;
            assert_eq!(status.after(RUNNING, true), status);
            assert_eq!(status.after(Status(!0), true), status | Status::FAILED);
        }
    }

    #[test]
    fn the_worst_that_is_true_is_shown() {
        assert_eq!(DriverState::from(Status::default()), DriverState::Reset);
        assert_eq!(DriverState::from(RUNNING), DriverState::DriverOk);
        assert_eq!(DriverState::from(RUNNING | Status::DEVICE_NEEDS_RESET).to_string(), "needs-reset");
    }
}
