//! Status and features: virtio 1.2 §2.1, §2.2, §3.1.1, and drivers that jump.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rig::{EVENT_IDX, RING_RESET, Rig, VERSION_1};
use testkit::device::{Behaviour, FEATURE, UNWELCOME_FEATURE, eventually};
use testkit::driver::{Register, Registers, status};
use virtio_mmio::DriverState;

#[test]
fn spec_3_1_1_a_driver_that_takes_each_step_gets_to_driver_ok() {
    let rig = Rig::new(Behaviour::Echo);
    assert_eq!(rig.registers.state(), DriverState::Reset);
    assert!(rig.registers.negotiate(VERSION_1 | EVENT_IDX | FEATURE));
    assert_eq!(rig.registers.state(), DriverState::FeaturesOk);
    rig.registers.set_up_queue(0, &rig.queue(0));
    rig.registers.add_status(status::DRIVER_OK);
    assert_eq!((rig.registers.status(), rig.registers.state()), (15, DriverState::DriverOk));
    eventually("both lanes run", || rig.counter("workers") == 2);
    assert_eq!(rig.device.features.load(SeqCst), VERSION_1 | EVENT_IDX | FEATURE);
}

#[test]
fn spec_2_2_2_features_beyond_the_offer_or_without_version_1_are_refused() {
    let refused = [0, FEATURE, EVENT_IDX, VERSION_1 | 1, VERSION_1 | 1 << 33, VERSION_1 | 1 << 63, u64::MAX];
    for features in refused {
        let rig = Rig::new(Behaviour::Echo);
        assert!(!rig.registers.negotiate(features), "{features:#x}");
        rig.registers.add_status(status::DRIVER_OK);
        assert_eq!(rig.registers.status(), 3, "{features:#x}");
    }
}

#[test]
fn spec_2_2_2_the_device_can_refuse_a_set_and_the_driver_try_another() {
    let rig = Rig::new(Behaviour::Echo);
    assert!(!rig.registers.negotiate(VERSION_1 | UNWELCOME_FEATURE));
    assert!(rig.registers.negotiate(VERSION_1 | FEATURE));
}

#[test]
fn c10_a_bit_in_a_word_beyond_the_offer_spoils_the_negotiation() {
    for word in [2, 3, 0x8000_0000, u32::MAX] {
        let rig = Rig::new(Behaviour::Echo);
        rig.registers.write(Register::DriverFeaturesSel, word);
        rig.registers.write(Register::DriverFeatures, 1);
        assert!(!rig.registers.negotiate(VERSION_1), "word {word:#x}");
        rig.registers.reset();
        assert!(rig.registers.negotiate(VERSION_1), "after reset");
    }
}

#[test]
fn c10_features_are_fixed_by_features_ok_until_reset() {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1));
    rig.registers.write(Register::DriverFeaturesSel, 0);
    rig.registers.write(Register::DriverFeatures, u32::MAX);
    rig.registers.add_status(status::DRIVER_OK);
    eventually("the device starts", || rig.counter("workers") == 2);
    assert_eq!(rig.device.features.load(SeqCst), VERSION_1);

    rig.registers.reset();
    assert!(rig.registers.negotiate(VERSION_1 | RING_RESET | FEATURE));
}

#[test]
fn c09_driver_ok_out_of_the_blue_starts_nothing() {
    for value in [4, 4 | 1, 4 | 2, 4 | 3, 4 | 8, 15, 15 | 64] {
        let rig = Rig::new(Behaviour::Echo);
        rig.registers.write(Register::Status, value);
        assert_eq!(rig.registers.status() & (4 | 8 | 64), 0, "{value:#x}");
        assert_eq!(rig.counter("workers"), 0, "{value:#x}");
    }
}

#[test]
fn c09_bits_are_not_cleared_one_by_one() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    for value in [1, 2, 3, 4, 8, 11] {
        rig.registers.write(Register::Status, value);
        assert_eq!(rig.registers.status(), 15);
    }
    rig.offer(&queue);
    queue.wait_used(1);
}

#[test]
fn c09_needs_reset_and_unknown_bits_are_not_the_drivers_to_set() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    rig.registers.write(Register::Status, !status::FAILED);
    assert_eq!(rig.registers.status(), 15);
}

#[test]
fn c09_after_failed_only_a_reset_goes_on() {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1));
    rig.registers.add_status(status::FAILED);
    rig.registers.add_status(status::DRIVER_OK);
    assert_eq!((rig.registers.status(), rig.registers.state()), (11 | 128, DriverState::Failed));
    rig.registers.reset();
    rig.registers.bring_up(VERSION_1, &rig.queue(0));
}

#[test]
fn spec_2_1_2_buffers_and_kicks_before_driver_ok_are_seen_only_then() {
    let rig = Rig::new(Behaviour::Echo);
    let queue = rig.queue(0);
    rig.registers.negotiate(VERSION_1);
    rig.registers.set_up_queue(0, &queue);
    rig.offer(&queue);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((queue.used_idx(), rig.counter("ignored")), (0, 1));

    rig.registers.add_status(status::DRIVER_OK);
    queue.wait_used(1);
}

#[test]
fn c11_kicks_after_failed_or_reset_or_of_a_queue_not_ready_are_ignored() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    rig.registers.notify(1);
    assert_eq!(rig.counter("ignored"), 1, "queue 1 was not set up");
    rig.registers.add_status(status::FAILED);
    rig.registers.notify(0);
    assert_eq!(rig.counter("ignored"), 2, "after FAILED");
    rig.registers.reset();
    rig.registers.notify(0);
    assert_eq!(rig.counter("ignored"), 3, "after reset");
}
