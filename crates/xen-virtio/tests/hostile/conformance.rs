//! What virtio 1.2 wants of every device, held against each kind. Each test is of the section that it is named by.

use io_bus::Device;
use testkit::cases::each;
use testkit::driver::{Register, Registers, status};

use crate::guest::{Guest, VERSION_1};
use crate::hosts::Kind;
use crate::states::State;

/// Features that require one of others: the device ID, the bit, and those bits (§5.1.3.1, §5.2.5.2, §5.10.3).
const REQUIRED: &[(u32, u32, &[u32])] = &[
    (NET, 7, &[1]),
    (NET, 8, &[1]),
    (NET, 9, &[7, 8]),
    (NET, 10, &[1]),
    (NET, 11, &[0]),
    (NET, 12, &[0]),
    (NET, 13, &[11, 12]),
    (NET, 14, &[0]),
    (NET, 18, &[17]),
    (NET, 19, &[17]),
    (NET, 21, &[17]),
    (NET, 22, &[17]),
    (NET, 23, &[17]),
    (NET, 53, &[17]),
    (NET, 54, &[1]),
    (NET, 55, &[1]),
    (NET, 56, &[0]),
    (NET, 60, &[17]),
    (NET, 61, &[11, 12]),
    (BLK, 11, &[9]),
    (VSOCK, 2, &[0]),
];

const NET: u32 = 1;
const BLK: u32 = 2;
const VSOCK: u32 = 19;

/// Bits 24 to 49, which are not a device's: those of them that there is support for.
const SUPPORTED: u64 = 1 << 28 | 1 << 29 | VERSION_1 | 1 << 40;
const RESERVED: u64 = ((1 << 50) - (1 << 24)) & !SUPPORTED;

/// What this feature of a device requires: one of these.
fn required_by(device_id: u32, bit: u32) -> Option<&'static [u32]> {
    REQUIRED.iter().find(|(device, feature, _)| (*device, *feature) == (device_id, bit)).map(|(.., required)| *required)
}

/// A feature, with what it requires of what is offered.
fn whole(device_id: u32, offered: u64, bit: u32) -> u64 {
    let first = required_by(device_id, bit).and_then(|any| any.iter().find(|bit| offered & 1 << **bit != 0));
    1 << bit | first.map_or(0, |bit| whole(device_id, offered, *bit))
}

fn bits_of(features: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| features & 1 << bit != 0)
}

/// Reads all of configuration space, byte by byte.
fn configuration(guest: &Guest) -> Vec<u8> {
    let len = guest.host.device.identity().config_len as u64;
    let byte = |at| {
        let mut byte = [0];
        Device::read(&*guest.registers, Register::Config as u64 + at, &mut byte);
        byte[0]
    };
    (0..len).map(byte).collect()
}

#[test]
fn spec_2_1_2_no_kind_uses_a_buffer_or_says_a_word_before_driver_ok() {
    each(Kind::ALL, |kind| {
        let guest = Guest::new(kind);
        guest.set_up(guest.features());
        let request = guest.host.request();
        let queue = guest.queue(request.queue);
        queue.write_chain(0, &guest.buffers(&request));
        queue.publish(0);
        guest.registers.notify(request.queue);
        assert_eq!((queue.used_idx(), guest.interrupts(), guest.memory.counts().calls), (0, 0, 0));
        guest.registers.add_status(status::DRIVER_OK);
        queue.wait_used(1);
    });
}

#[test]
fn spec_2_2_2_every_kind_offers_no_feature_without_those_that_it_requires() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let device_id = guest.registers.read(Register::DeviceId);
        let offered = guest.registers.offered_features();
        each(bits_of(offered).map(|bit| (kind, bit)), |(_, bit)| {
            let is_met = |any: &[u32]| any.iter().any(|required| offered & 1 << required != 0);
            assert!(required_by(device_id, bit).is_none_or(is_met));
        });
    }
}

#[test]
fn spec_2_2_2_every_kind_accepts_what_it_offers_and_each_feature_by_itself() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let device_id = guest.registers.read(Register::DeviceId);
        let offered = guest.registers.offered_features();
        let by_itself = bits_of(offered).map(|bit| VERSION_1 | whole(device_id, offered, bit));
        each(by_itself.chain([offered]).map(|features| (kind, features)), |(_, features)| {
            guest.registers.reset();
            assert!(guest.registers.negotiate(features));
            guest.registers.add_status(status::DRIVER_OK);
            assert_eq!(guest.registers.status(), 15);
        });
    }
}

#[test]
fn spec_2_4_1_every_kind_is_as_new_after_a_reset() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let all = || -> Vec<_> {
            let registers = (0..Register::ConfigGeneration as u64).step_by(4).map(|at| guest.registers.load(at, 4));
            let queues = (0..).zip(&guest.queues).map(|(index, _)| {
                guest.registers.write(Register::QueueSel, index);
                u64::from(guest.registers.read(Register::QueueReady))
            });
            registers.chain(queues).chain(configuration(&guest).into_iter().map(u64::from)).collect()
        };
        let new = all();
        each(State::ALL.map(|state| (kind, state)), |(_, state)| {
            state.enter(&guest);
            guest.reset();
            assert_eq!(all(), new);
        });
    }
}

#[test]
fn spec_2_5_2_every_kind_shows_its_configuration_before_features_ok() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        guest.bring_up();
        let in_use = configuration(&guest);
        each([State::Reset, State::Acknowledged, State::Driver].map(|state| (kind, state)), |(_, state)| {
            state.enter(&guest);
            assert_eq!(configuration(&guest), in_use);
        });
    }
}

#[test]
fn spec_2_7_every_kind_has_queues_of_sizes_that_there_are() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let count = guest.queues.len() as u32;
        each((0..=count).map(|index| (kind, index)), |(_, index)| {
            guest.registers.write(Register::QueueSel, index);
            let size = guest.registers.read(Register::QueueNumMax);
            assert_eq!(size.is_power_of_two() && size <= 1 << 15, index < count);
            assert!(index < count || size == 0);
        });
    }
}

#[test]
fn spec_6_2_every_kind_offers_version_1_and_nothing_that_is_reserved() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let offered = guest.registers.offered_features();
        assert!(offered & VERSION_1 != 0, "{kind:?}");
        each(bits_of(RESERVED).map(|bit| (kind, bit)), |(_, bit)| {
            assert_eq!(offered & 1 << bit, 0);
            guest.registers.reset();
            assert!(!guest.registers.negotiate(offered | 1 << bit));
        });
    }
}
