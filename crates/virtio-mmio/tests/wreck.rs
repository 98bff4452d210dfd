//! What a driver finds of a device that was given up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::Arc;

use io_bus::{Device, Written};
use rig::{Line, RING_RESET, Rig, VERSION_1};
use testkit::device::Behaviour;
use testkit::driver::{Register, Registers, status};
use virtio_backend::Record;
use virtio_mmio::Wreck;

const NEEDS_RESET: u32 = status::DEVICE_NEEDS_RESET;

/// What is left of a device that a driver has brought so far.
fn wrecked(bring: impl FnOnce(&Rig)) -> (Arc<Wreck>, Arc<Line>) {
    let rig = Rig::new(Behaviour::Echo);
    bring(&rig);
    let line = Arc::<Line>::default();
    (Wreck::new(&rig.record, line.clone()), line)
}

#[test]
fn spec_2_1_2_a_driver_that_used_the_device_is_told_that_it_needs_a_reset() {
    let (wreck, line) = wrecked(|rig| rig.registers.bring_up(VERSION_1, &rig.queue(0)));
    assert_eq!([0, 4, 8].map(|offset| wreck.load(offset, 4)), [0x7472_6976, 2, 42]);
    assert_eq!((wreck.status(), line.raised()), (15 | NEEDS_RESET, 1));
    // It may have missed what was used last.
    assert_eq!(wreck.acknowledge(), 3);
    assert_eq!((wreck.read(Register::InterruptStatus), line.raised()), (0, 1));
}

#[test]
fn a_driver_that_did_not_use_it_yet_is_not_disturbed() {
    let (wreck, line) = wrecked(|rig| assert!(rig.registers.negotiate(VERSION_1)));
    assert_eq!((wreck.status(), line.raised()), (11 | NEEDS_RESET, 0));
    assert_eq!(wreck.read(Register::InterruptStatus), 0);
}

#[test]
fn a_reset_is_done_at_once_and_nobody_gets_further() {
    let (wreck, line) = wrecked(|rig| rig.registers.bring_up(VERSION_1, &rig.queue(0)));
    wreck.reset();
    assert_eq!((wreck.status(), wreck.read(Register::InterruptStatus)), (0, 0));
    assert_eq!(wreck.offered_features(), 0);
    assert!(!wreck.negotiate(VERSION_1));
    assert_eq!(wreck.status(), status::ACKNOWLEDGE | NEEDS_RESET);
    wreck.add_status(status::DRIVER_OK);
    assert_eq!(wreck.status(), status::ACKNOWLEDGE | NEEDS_RESET);
    wreck.add_status(status::FAILED);
    assert_eq!(wreck.status(), status::ACKNOWLEDGE | NEEDS_RESET | status::FAILED);
    assert_eq!(line.raised(), 1, "for what was before");
}

#[test]
fn a_driver_that_waits_for_a_queue_to_stop_waits_no_longer() {
    let (wreck, _line) = wrecked(|rig| rig.registers.bring_up(VERSION_1 | RING_RESET, &rig.queue(0)));
    for register in [Register::QueueReady, Register::QueueReset] {
        wreck.write(register, 1);
        assert_eq!(wreck.read(register), 0);
    }
}

#[test]
fn c01_every_access_is_answered_at_once() {
    let (wreck, _line) = wrecked(|rig| rig.registers.bring_up(VERSION_1, &rig.queue(0)));
    for offset in 0..0x1000 {
        for len in [1, 2, 4, 8] {
            let mut data = vec![0xff; len];
            wreck.as_ref().read(offset, &mut data);
            assert!(offset < 0x100 && len == 4 || data == vec![0; len], "{offset:#x} {len}");
            assert!(matches!(wreck.as_ref().write(offset, &data), Written::Now), "{offset:#x} {len}");
        }
    }
}

#[test]
fn of_a_record_that_makes_no_sense_nobody_knows_whether_a_driver_uses_it() {
    for record in [Record::new().unwrap(), garbled()] {
        let line = Arc::<Line>::default();
        let wreck = Wreck::new(&record, line.clone());
        assert_eq!((wreck.status(), line.raised()), (15 | NEEDS_RESET, 1));
        wreck.reset();
        assert_eq!(wreck.status(), 0);
    }
}

fn garbled() -> Record {
    let record = Record::new().unwrap();
    record.transport().store(&"nonsense").unwrap();
    record
}
