//! The register file and configuration space, access by access: rows C01, C02, C14 and C17.

use io_bus::{Device, Written};
use testkit::cases::each;
use testkit::driver::{Register, Registers};

use crate::guest::{Guest, VERSION_1};
use crate::hosts::Kind;
use crate::states::State;

/// Bytes of a window under libxl.
const WINDOW: u64 = 0x200;

const CONFIG: u64 = Register::Config as u64;

/// What a read of such an access gives.
fn read(guest: &Guest, offset: u64, width: usize) -> Vec<u8> {
    let mut data = vec![0xaa; width];
    Device::read(&*guest.registers, offset, &mut data);
    data
}

/// Writes, and waits for the answer if it comes later.
fn write(guest: &Guest, offset: u64, data: &[u8]) {
    if let Written::Later(deferral) = Device::write(&*guest.registers, offset, data) {
        let (told, heard) = std::sync::mpsc::channel();
        deferral.then(move || told.send(()).unwrap());
        let heard = heard.recv_timeout(std::time::Duration::from_secs(20));
        assert!(heard.is_ok(), "a write of {data:x?} at {offset:#x} is never answered");
    }
}

/// What all registers read as. No read is an event.
fn all_registers(guest: &Guest) -> Vec<u64> {
    (0..CONFIG).step_by(4).map(|offset| guest.registers.load(offset, 4)).collect()
}

fn is_a_register_access(offset: u64, width: usize) -> bool {
    offset < CONFIG && width == 4 && offset.is_multiple_of(4)
}

#[test]
fn c01_every_read_of_a_window_in_every_state_is_answered_and_changes_nothing() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let config_len = guest.host.device.identity().config_len as u64;
        for state in State::ALL {
            state.enter(&guest);
            let before = all_registers(&guest);
            let offsets = (0..WINDOW).chain([WINDOW, 0x1000, u64::from(u32::MAX), u64::MAX - 7, u64::MAX]);
            let inputs = offsets.flat_map(|offset| [1, 2, 3, 4, 7, 8].map(|width| (kind, state, offset, width)));
            each(inputs, |(_, _, offset, width)| {
                let data = read(&guest, offset, width);
                if offset < CONFIG && !is_a_register_access(offset, width) {
                    assert!(data.iter().all(|byte| *byte == 0), "{data:x?}");
                }
                let mut beyond = data.iter().zip(offset..=u64::MAX).filter(|(_, at)| *at >= CONFIG + config_len);
                assert!(offset < CONFIG || beyond.all(|(byte, _)| *byte == 0), "{data:x?}");
            });
            assert_eq!((guest.registers.status(), all_registers(&guest)), (state.status(), before));
        }
        guest.works_after_reset();
    }
}

#[test]
fn c01_c02_a_write_that_is_none_of_a_register_changes_none_in_any_state() {
    // What is read only, and what is nothing.
    let not_written = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x18, 0x1c, 0x28, 0x2c, 0x34, 0x3c, 0x40, 0x48, 0x4c, 0x60, 0x74];
    let nor_these = [0xb0, 0xb4, 0xb8, 0xbc, 0xc4, 0xc8, 0xf0, 0xf8, 0xfc];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        for state in State::ALL {
            state.enter(&guest);
            let before = all_registers(&guest);
            let offsets = (0..CONFIG).flat_map(|offset| [1, 2, 3, 4, 8].map(|width| (offset, width)));
            let is_none = |(offset, width): &(u64, usize)| {
                !is_a_register_access(*offset, *width) || not_written.contains(offset) || nor_these.contains(offset)
            };
            let inputs = offsets
                .filter(is_none)
                .flat_map(|(offset, width)| [0, 1, 0xff].map(|byte| (kind, state, offset, width, byte)));
            each(inputs, |(_, _, offset, width, byte)| write(&guest, offset, &vec![byte; width]));
            assert_eq!((guest.registers.status(), all_registers(&guest)), (state.status(), before));
        }
        guest.works_after_reset();
    }
}

#[test]
fn c01_any_value_in_any_register_in_any_state_leaves_a_device_that_a_reset_mends() {
    let values = [0, 1, 2, 0x55, 0x8000, 0xffff, 0x8000_0000, u32::MAX];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        for state in State::ALL {
            let inputs = (0..CONFIG).step_by(4).flat_map(|offset| values.map(|value| (kind, state, offset, value)));
            let mut changed = true;
            each(inputs, |(_, state, offset, value)| {
                // What is set up before DRIVER_OK is set up anew for each.
                if changed || !state.is_after_driver_ok() {
                    state.enter(&guest);
                }
                write(&guest, offset, &value.to_le_bytes());
                assert_eq!(guest.registers.read(Register::MagicValue), 0x7472_6976);
                changed = guest.registers.status() != state.status();
            });
            guest.works_after_reset();
        }
    }
}

#[test]
fn c01_c14_any_write_to_configuration_space_in_any_state_is_answered_and_breaks_nothing() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let config_len = guest.host.device.identity().config_len as u64;
        for state in State::ALL {
            state.enter(&guest);
            let offsets = (CONFIG - 3..CONFIG + config_len + 8).chain([WINDOW - 1, WINDOW, u64::MAX - 7, u64::MAX]);
            let accesses = offsets.flat_map(|offset| [1, 2, 3, 4, 8].map(|width| (offset, width)));
            let inputs = accesses.filter(|(offset, width)| !is_a_register_access(*offset, *width));
            let inputs =
                inputs.flat_map(|(offset, width)| [0, 0x5a, 0xff].map(|byte| (kind, state, offset, width, byte)));
            each(inputs, |(_, _, offset, width, byte)| {
                write(&guest, offset, &vec![byte; width]);
                let after = read(&guest, CONFIG + config_len, 8);
                assert_eq!(after, [0; 8], "there is something behind the end");
            });
            assert_eq!(guest.registers.status(), state.status());
        }
        guest.works_after_reset();
    }
}

#[test]
fn c14_a_configuration_reads_the_same_by_bytes_as_in_one_access() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        guest.bring_up();
        let len = guest.host.device.identity().config_len + 8;
        let bytes: Vec<_> = (CONFIG..).take(len + 8).flat_map(|offset| read(&guest, offset, 1)).collect();
        let inputs = (0..len).flat_map(|offset| (1..=8).map(move |width| (kind, offset, width)));
        each(inputs, |(_, offset, width)| {
            assert_eq!(read(&guest, CONFIG + offset as u64, width), bytes[offset..offset + width]);
        });
    }
}

#[test]
fn c17_no_device_has_shared_memory_whatever_region_is_asked_for() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let regions = (0..8).chain([0xff, 0x100, 0xffff, 0x8000_0000, u32::MAX]);
        each(regions.flat_map(|region| State::ALL.map(|state| (kind, region, state))), |(_, region, state)| {
            state.enter(&guest);
            guest.registers.write(Register::ShmSel, region);
            let words = [Register::ShmLenLow, Register::ShmLenHigh, Register::ShmBaseLow, Register::ShmBaseHigh];
            assert!(words.iter().all(|word| guest.registers.read(*word) == u32::MAX));
        });
        guest.works_after_reset();
        assert!(guest.registers.offered_features() & VERSION_1 != 0);
    }
}
