//! Status, features, kicks and acknowledgements: rows C09 to C12, C15, D19 and D20.

use testkit::cases::each;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Register, Registers, status};

use crate::guest::{EVENT_IDX, Guest, RAM, READABLE, SIZE, VERSION_1, WRITABLE};
use crate::hosts::Kind;

/// How far a driver has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Reset,
    Acknowledged,
    Driver,
    FeaturesOk,
    DriverOk,
    NeedsReset,
    Failed,
}

impl State {
    pub const ALL: [Self; 7] = [
        Self::Reset,
        Self::Acknowledged,
        Self::Driver,
        Self::FeaturesOk,
        Self::DriverOk,
        Self::NeedsReset,
        Self::Failed,
    ];

    /// Takes a device there, from wherever it is.
    pub fn enter(self, guest: &Guest) {
        guest.registers.reset();
        match self {
            Self::Reset => {}
            Self::Acknowledged => guest.registers.add_status(status::ACKNOWLEDGE),
            Self::Driver => guest.registers.add_status(status::ACKNOWLEDGE | status::DRIVER),
            Self::FeaturesOk => guest.set_up(guest.features()),
            Self::DriverOk => guest.bring_up(),
            Self::NeedsReset => {
                guest.bring_up();
                let queue = guest.kind.prompt_queues()[0];
                guest.queue(queue).set_avail_idx(0x8000);
                guest.registers.notify(queue);
                guest.expect_broken("the device is told nonsense");
            }
            Self::Failed => {
                guest.bring_up();
                guest.registers.add_status(status::FAILED);
            }
        }
        assert_eq!(guest.registers.status(), self.status());
    }

    /// What Status reads then.
    pub fn status(self) -> u32 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => 1,
            Self::Driver => 3,
            Self::FeaturesOk => 11,
            Self::DriverOk => 15,
            Self::NeedsReset => 15 | 64,
            Self::Failed => 15 | 128,
        }
    }

    /// Whether the device runs, or has.
    pub fn is_after_driver_ok(self) -> bool {
        self.status() & status::DRIVER_OK != 0
    }
}

#[test]
fn c09_no_jump_of_status_starts_a_device_that_is_not_set_up_or_leaves_one_that_cannot_be_reset() {
    let jumps =
        [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 15, 16, 32, 64, 79, 128, 143, 240, 255, 0x100, 0xf00, 0xffff_ff00, u32::MAX];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let inputs = State::ALL.iter().flat_map(|state| jumps.map(|jump| (kind, *state, jump)));
        each(inputs, |(_, state, jump)| {
            state.enter(&guest);
            guest.registers.write(Register::Status, jump);
            let now = guest.registers.status();
            // Bits are not cleared one by one, none is set that no driver may set, and none that does not exist.
            assert_eq!(now & state.status(), state.status(), "{now:#x}");
            assert_eq!(now & !(state.status() | jump) & !status::DEVICE_NEEDS_RESET, 0, "{now:#x}");
            assert_eq!(now & !0xcf, 0, "{now:#x}");
            let has_features = state.status() & status::FEATURES_OK != 0;
            assert!(has_features || now & status::DRIVER_OK == 0, "it started without features");
            if !state.is_after_driver_ok() {
                guest.works_after_reset();
            }
        });
        guest.works_after_reset();
    }
}

#[test]
fn c10_no_device_accepts_a_bit_that_it_does_not_offer() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let offered = guest.registers.offered_features();
        each((0..64).filter(|bit| offered >> bit & 1 == 0).map(|bit| (kind, bit)), |(_, bit)| {
            for beside in [VERSION_1, offered] {
                guest.reset();
                assert!(!guest.registers.negotiate(beside | 1 << bit));
                guest.registers.add_status(status::DRIVER_OK);
                assert_eq!(guest.registers.status(), 3, "and it does not start");
            }
        });
        guest.works_after_reset();
    }
}

#[test]
fn c10_any_part_of_the_offer_is_accepted_and_works_or_refused() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let offered = guest.features();
        // Each bit missing, and each alone.
        let bits = (0..64).filter(|bit| offered >> bit & 1 == 1).map(|bit| 1_u64 << bit);
        let inputs: Vec<_> = bits.flat_map(|bit| [offered & !bit, VERSION_1 | bit, bit]).collect();
        each(inputs.into_iter().map(|features| (kind, features)), |(_, features)| {
            guest.reset();
            let accepted = guest.registers.negotiate(features);
            assert!(!accepted || features & VERSION_1 != 0, "a legacy driver is not served");
            guest.registers.write(Register::DriverFeaturesSel, 0);
            guest.registers.write(Register::DriverFeatures, u32::MAX);
            guest.works_after_reset();
        });
    }
}

#[test]
fn c10_whatever_words_are_written_a_reset_forgets_them() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let selectors = [2, 3, 4, 0x40, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX];
        each(selectors.iter().flat_map(|sel| [1, 0x8000_0000, u32::MAX].map(|word| (kind, *sel, word))), |input| {
            let (_, selector, word) = input;
            guest.reset();
            guest.registers.write(Register::DeviceFeaturesSel, selector);
            assert_eq!(guest.registers.read(Register::DeviceFeatures), 0, "nothing is offered there");
            guest.registers.write(Register::DriverFeaturesSel, selector);
            guest.registers.write(Register::DriverFeatures, word);
            assert!(!guest.registers.negotiate(VERSION_1));
            guest.works_after_reset();
        });
    }
}

#[test]
fn c11_a_kick_before_driver_ok_or_after_the_end_is_not_heard() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let states = State::ALL.into_iter().filter(|state| *state != State::DriverOk);
        let kicks = [0, 1, 2, 3, 7, 0xff, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX];
        each(states.flat_map(|state| kicks.map(|queue| (kind, state, queue))), |(_, state, queue)| {
            state.enter(&guest);
            // Whatever would be taken has to be given back.
            for queue in &guest.queues {
                queue.clear();
                queue.write_descriptor(0, Descriptor::writable(WRITABLE, 16));
                queue.publish(0);
            }
            let ignored = guest.counter("ignored");
            guest.registers.notify(queue);
            assert_eq!(guest.counter("ignored"), ignored + 1);
            guest.registers.reset();
            // Lanes that have heard of their queues may come to an end of their own.
            let was_taken = guest.queues.iter().any(|queue| queue.used_idx() != 0);
            assert!(!was_taken || state.is_after_driver_ok(), "a chain was taken");
            guest.works_after_reset();
        });
    }
}

#[test]
fn c12_a_reset_amid_requests_is_the_end_of_them_and_the_memory_is_the_guests_at_once() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        each((1..=SIZE).flat_map(|requests| (0..3).map(move |resets| (kind, requests, resets))), |input| {
            let (_, requests, resets) = input;
            guest.reset();
            guest.bring_up();
            guest.ask_for(requests);
            guest.reset();
            // It is used for something else as soon as the write of Status is answered.
            let len = 0x1000 * guest.queues.len();
            guest.memory.write(RAM, &vec![0xff; len]);
            guest.memory.write(WRITABLE, &[0xff; 0x1000]);
            (0..resets).for_each(|_| guest.reset());
            let (mut rings, mut data) = (vec![0; len], vec![0; 0x1000]);
            guest.memory.read(RAM, &mut rings);
            guest.memory.read(WRITABLE, &mut data);
            assert!(rings.iter().chain(&data).all(|byte| *byte == 0xff), "written after the reset");
            guest.bring_up();
            guest.works();
        });
    }
}

#[test]
fn c15_acknowledging_anything_in_any_state_loses_no_interrupt() {
    let acknowledged = [0, 1, 2, 3, 4, 0x80, 0xff, 0x100, 0x8000_0000, 0xffff_fffc, u32::MAX];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let inputs = State::ALL.iter().flat_map(|state| acknowledged.map(|bits| (kind, *state, bits)));
        each(inputs, |(_, state, bits)| {
            state.enter(&guest);
            let before = guest.registers.read(Register::InterruptStatus);
            guest.registers.write(Register::InterruptAck, bits);
            let after = guest.registers.read(Register::InterruptStatus);
            assert_eq!(after & before, before & !bits);
            if state == State::DriverOk {
                let interrupts = guest.interrupts();
                guest.works();
                eventually("the driver is told", || guest.interrupts() > interrupts);
                assert_eq!(guest.registers.read(Register::InterruptStatus) & 1, 1);
            }
        });
        guest.works_after_reset();
    }
}

/// A feature bit is not offered by any device, nor does one accept it, alone or beside all that is offered.
fn is_nowhere(bit: u32) {
    each(Kind::ALL, |kind| {
        let guest = Guest::new(kind);
        let offered = guest.registers.offered_features();
        assert_eq!(offered >> bit & 1, 0, "it is offered");
        for features in [VERSION_1, offered, offered & !EVENT_IDX] {
            guest.reset();
            assert!(!guest.registers.negotiate(features | 1 << bit), "it is accepted");
        }
        guest.works_after_reset();
    });
}

#[test]
fn d19_in_order_completion_cannot_be_negotiated() {
    const IN_ORDER: u32 = 35;
    is_nowhere(IN_ORDER);
}

#[test]
fn d20_packed_rings_cannot_be_negotiated() {
    const RING_PACKED: u32 = 34;
    is_nowhere(RING_PACKED);
}

#[test]
fn d20_what_a_packed_ring_would_hold_is_no_split_one_and_hurts_no_device() {
    // Descriptors of a packed ring have a buffer's ID where split ones have flags, and their flags at the end.
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queue = kind.prompt_queues()[0];
        let ids = [0, 1, SIZE - 1, SIZE, 0x7fff, 0xffff];
        let flags = [0, 1, 2, 3, 0x80, 0x81, 0x8000, 0x8080, 0x8083, 0xffff];
        each(ids.iter().flat_map(|id| flags.map(|flags| (kind, *id, flags))), |(_, id, flags)| {
            guest.reset();
            guest.bring_up();
            for slot in 0..SIZE {
                let packed = Descriptor { addr: READABLE, len: 64, flags: id, next: flags };
                guest.queue(queue).write_descriptor(slot, packed);
            }
            guest.queue(queue).publish(0);
            guest.registers.notify(queue);
            if !kind.may_be_silent() {
                guest.outcome(queue);
            }
            guest.works_after_reset();
        });
    }
}
