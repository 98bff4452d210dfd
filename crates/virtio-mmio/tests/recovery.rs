//! A register file whose process is killed, and the one that goes on: the driver sees the same device.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use rig::{RING_RESET, Rig, VERSION_1};
use rustix::io::pwrite;
use serde_json::{Value, json};
use testkit::device::{Behaviour, TestDevice, UNWELCOME_FEATURE, eventually};
use testkit::driver::{RawQueue, Register, Registers, status};
use testkit::record::left_behind;
use virtio_backend::{Fault, Record};
use virtio_mmio::DriverState;

const NEEDS_RESET: u32 = status::DEVICE_NEEDS_RESET;

/// All registers that stay as they are.
fn registers(rig: &Rig) -> Vec<(u64, u64)> {
    let changing = [Register::InterruptStatus as u64, Register::ConfigGeneration as u64];
    let offsets = (0..0x120).step_by(4).filter(|offset| !changing.contains(offset));
    offsets.map(|offset| (offset, rig.registers.load(offset, 4))).collect()
}

/// Every write from reset to the first kick, with two queues.
fn handshake(queues: &[RawQueue; 2]) -> Vec<(Register, u32)> {
    let mut writes = vec![
        (Register::Status, 0),
        (Register::Status, 1),
        (Register::Status, 3),
        (Register::DeviceFeaturesSel, 1),
        (Register::DriverFeaturesSel, 0),
        (Register::DriverFeatures, 0),
        (Register::DriverFeaturesSel, 1),
        (Register::DriverFeatures, u32::try_from((VERSION_1 | RING_RESET) >> 32).unwrap()),
        (Register::Status, 11),
    ];
    for (index, queue) in (0..).zip(queues) {
        let low = |address: u64| u32::try_from(address).unwrap();
        writes.extend([
            (Register::QueueSel, index),
            (Register::QueueNum, queue.size().into()),
            (Register::QueueDescLow, low(queue.desc_table())),
            (Register::QueueDescHigh, 0),
            (Register::QueueDriverLow, low(queue.avail_ring())),
            (Register::QueueDriverHigh, 0),
            (Register::QueueDeviceLow, low(queue.used_ring())),
            (Register::QueueDeviceHigh, 0),
            (Register::QueueReady, 1),
        ]);
    }
    writes.push((Register::Status, 15));
    writes.push((Register::QueueNotify, 0));
    writes
}

/// Requests in queue 0 get there and back.
fn assert_works(rig: &Rig, queue: &RawQueue) {
    let before = queue.used_idx();
    rig.offer(queue);
    queue.wait_used(before.wrapping_add(1));
}

#[test]
fn spec_3_1_1_a_driver_does_not_notice_whatever_it_wrote_last() {
    let len = handshake(&[0, 1].map(|index| Rig::new(Behaviour::Echo).queue(index))).len();
    for done in 0..=len {
        // An access that was not answered is made again, whether it had been noted or not.
        for is_made_again in [false, true] {
            let rig = Rig::new(Behaviour::Echo);
            let queues = [0, 1].map(|index| rig.queue(index));
            let writes = handshake(&queues);
            writes[..done].iter().for_each(|&(register, value)| rig.registers.write(register, value));
            let before = registers(&rig);

            let next = rig.followed(Behaviour::Echo);
            drop(rig);
            assert_eq!(registers(&next), before, "after {done} writes");
            let is_in_use = next.registers.status() & status::DRIVER_OK != 0;
            assert_eq!(next.registers.read(Register::InterruptStatus), if is_in_use { 3 } else { 0 });
            assert_eq!(next.line.raised(), u64::from(is_in_use));

            let rest = done.saturating_sub(usize::from(is_made_again));
            writes[rest..].iter().for_each(|&(register, value)| next.registers.write(register, value));
            assert_works(&next, &queues[0]);
        }
    }
}

#[test]
fn a_driver_in_use_is_told_once_to_look_at_everything() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    let next = rig.followed(Behaviour::Echo);
    assert_eq!((next.registers.state(), next.line.raised()), (DriverState::DriverOk, 1));
    assert_eq!(next.registers.acknowledge(), 3);
    assert_works(&next, &queue);
    eventually("it is told of its request", || next.line.raised() == 2);
    assert_eq!(next.registers.acknowledge(), 1);
}

#[test]
fn what_a_driver_used_in_a_former_process_counts_as_touched() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    assert!(rig.followed(Behaviour::Echo).registers.was_touched());
    assert!(!Rig::new(Behaviour::Echo).followed(Behaviour::Echo).registers.was_touched());
}

#[test]
fn what_was_in_flight_is_done_again_and_given_back_once() {
    let (rig, queue) = Rig::busy();
    rig.offer(&queue);
    eventually("the device takes both", || rig.device.held.load(SeqCst) == 2);
    let next = rig.followed(Behaviour::Echo);
    // Never to give them back.
    mem::forget(rig);
    queue.wait_used(2);
    assert_eq!([0, 1].map(|index| queue.used(index).id), [0, 2]);
    assert_works(&next, &queue);
    assert_eq!(queue.used_idx(), 3);
}

#[test]
fn one_follows_the_other_as_often_as_it_takes() {
    let (mut rig, queue) = Rig::running(Behaviour::Echo);
    for _ in 0..20 {
        let next = rig.followed(Behaviour::Echo);
        rig = next;
        assert_works(&rig, &queue);
    }
    assert_eq!(queue.used_idx(), 20);
}

#[test]
fn a_device_that_is_taken_away_leaves_what_its_driver_has_set_up() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    let before = registers(&rig);
    rig::Pending::from(rig.registers.stop()).wait();
    let next = rig.followed(Behaviour::Echo);
    assert_eq!(registers(&next), before);
    assert_works(&next, &queue);
}

#[test]
fn a_reset_that_was_under_way_is_made_again() {
    let (rig, queue) = Rig::busy();
    let reset = rig.begin(Register::Status, 0);
    assert!(!reset.is_answered());
    let next = rig.followed(Behaviour::Echo);
    mem::forget(rig);
    next.registers.reset();
    assert_eq!((next.registers.status(), next.registers.read(Register::QueueReady)), (0, 0));
    assert_eq!((next.registers.read(Register::InterruptStatus), next.device.workers.load(SeqCst)), (0, 0));

    queue.clear();
    next.registers.bring_up(VERSION_1, &queue);
    assert_works(&next, &queue);
}

#[test]
fn a_reset_that_was_done_stays_so() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    rig.registers.reset();
    let next = rig.followed(Behaviour::Echo);
    assert_eq!((next.registers.state(), next.line.raised()), (DriverState::Reset, 0));
    queue.clear();
    next.registers.bring_up(VERSION_1, &queue);
    assert_works(&next, &queue);
}

#[test]
fn spec_4_2_2_1_a_queue_reset_that_a_driver_polls_for_comes_to_its_end() {
    let (rig, queue) = Rig::busy();
    rig.registers.write(Register::QueueReset, 1);
    assert_eq!(rig.registers.read(Register::QueueReset), 1);
    let next = rig.followed(Behaviour::Echo);
    mem::forget(rig);
    eventually("the queue is reset", || next.registers.read(Register::QueueReset) == 0);
    assert_eq!(next.registers.read(Register::QueueReady), 0);

    queue.clear();
    next.registers.set_up_queue(0, &queue);
    assert_works(&next, &queue);
}

#[test]
fn a_queue_that_was_reset_and_set_up_again_begins_anew() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    assert_works(&rig, &queue);
    rig.registers.write(Register::QueueReset, 1);
    eventually("the queue is reset", || rig.registers.read(Register::QueueReset) == 0);
    queue.clear();
    let between = rig.followed(Behaviour::Echo);
    assert_eq!(between.registers.read(Register::QueueReady), 0);
    between.registers.set_up_queue(0, &queue);
    let next = between.followed(Behaviour::Echo);
    assert_eq!(next.registers.read(Register::QueueReady), 1);
    assert_works(&next, &queue);
    assert_eq!(next.registers.state(), DriverState::DriverOk);
}

#[test]
fn a_queue_on_its_way_out_of_service_is_in_service_until_the_driver_asks_again() {
    let (rig, queue) = Rig::busy();
    let stopping = rig.begin(Register::QueueReady, 0);
    assert!(!stopping.is_answered());
    let next = rig.followed(Behaviour::Echo);
    mem::forget(rig);
    next.registers.write(Register::QueueReady, 0);
    assert_eq!(next.registers.read(Register::QueueReady), 0);
    assert_eq!(queue.used_idx(), 1, "what was in flight is finished before");
}

#[test]
fn a_queue_that_was_taken_out_of_service_stays_so() {
    let before_use = |rig: &Rig| {
        assert!(rig.registers.negotiate(VERSION_1));
        rig.registers.set_up_queue(0, &rig.queue(0));
    };
    let in_use = |rig: &Rig| rig.registers.bring_up(VERSION_1, &rig.queue(0));
    let broken = |rig: &Rig| {
        rig.registers.bring_up(VERSION_1, &rig.queue(0));
        rig.signals().needs_reset(&Fault::Bug("as told".into()));
        eventually("the lanes end", || rig.device.workers.load(SeqCst) == 0);
    };
    for bring in [&before_use as &dyn Fn(&Rig), &in_use, &broken] {
        let rig = Rig::new(Behaviour::Echo);
        bring(&rig);
        rig.registers.write(Register::QueueReady, 0);
        assert_eq!(rig.registers.read(Register::QueueReady), 0);
        let next = rig.followed(Behaviour::Echo);
        assert_eq!(next.registers.read(Register::QueueReady), 0, "{:?}", next.registers.state());
    }
}

#[test]
fn a_device_that_is_broken_or_given_up_stays_so_until_its_reset() {
    let give_up: fn(&Rig) = |rig| rig.registers.add_status(status::FAILED);
    let broken: fn(&Rig) = |rig| rig.signals().needs_reset(&Fault::Bug("as told".into()));
    for (give_up, bit) in [(give_up, status::FAILED), (broken, NEEDS_RESET)] {
        let (rig, queue) = Rig::running(Behaviour::Echo);
        give_up(&rig);
        let next = rig.followed(Behaviour::Echo);
        assert_eq!((next.registers.status(), next.line.raised()), (15 | bit, 1));
        assert_eq!(next.device.starts.load(SeqCst), 0, "nothing runs");

        next.registers.reset();
        queue.clear();
        next.registers.bring_up(VERSION_1, &queue);
        assert_works(&next, &queue);
    }
}

#[test]
fn a_lane_that_cannot_go_on_breaks_its_device_as_ever() {
    let (rig, queue) = Rig::busy();
    let next = rig.followed(Behaviour::Panic);
    mem::forget(rig);
    eventually("the device breaks", || next.registers.state() == DriverState::NeedsReset);
    assert_eq!(queue.used_idx(), 0);
    // What it broke at breaks nobody who follows.
    let last = next.followed(Behaviour::Echo);
    assert_eq!(last.registers.state(), DriverState::NeedsReset);
}

#[test]
fn spec_4_2_2_1_no_configuration_is_shown_twice_under_a_generation() {
    let mut rig = Rig::new(Behaviour::Echo);
    let mut seen = BTreeSet::new();
    for round in 0..10 {
        for _ in 0..round % 3 {
            rig.signals().config_changed();
        }
        assert!(seen.insert(rig.registers.read(Register::ConfigGeneration)), "a generation comes again");
        rig = rig.followed(Behaviour::Echo);
    }
}

#[test]
fn a_change_that_the_driver_could_not_be_told_of_is_told_later() {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1));
    rig.signals().config_changed();
    let next = rig.followed(Behaviour::Echo);
    next.registers.set_up_queue(0, &next.queue(0));
    assert_eq!(next.line.raised(), 0);
    next.registers.add_status(status::DRIVER_OK);
    assert_eq!((next.line.raised(), next.registers.acknowledge()), (1, 2));
}

/// What a device in use leaves, in words.
fn noted(rig: &Rig) -> Value {
    rig.record.transport().load().unwrap().unwrap()
}

/// A record that holds these words.
fn record_of(words: &Value) -> Record {
    let record = Record::new().unwrap();
    record.transport().store(words).unwrap();
    record
}

/// Its driver finds out at once that the device is lost, and gets it back by a reset.
fn assert_lost(next: &Rig, queue: &RawQueue) {
    assert_eq!((next.registers.status(), next.line.raised()), (15 | NEEDS_RESET, 1));
    assert_eq!(next.device.starts.load(SeqCst), 0, "nothing runs");
    next.registers.reset();
    queue.clear();
    next.registers.bring_up(VERSION_1, queue);
    assert_works(next, queue);
}

#[test]
fn a_device_that_is_no_longer_what_its_driver_uses_needs_a_reset() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    let changes: [(&str, Value); 7] = [
        // A bit that nobody offers, one with which the device does not work, none at all.
        ("/features/accepted", json!(VERSION_1 | 1 << 23)),
        ("/features/accepted", json!(VERSION_1 | UNWELCOME_FEATURE)),
        ("/features/accepted", json!(0)),
        ("/features/beyond", json!(true)),
        ("/device_id", json!(2)),
        ("/queues", json!([])),
        // In use before it was negotiated.
        ("/status", json!(7)),
    ];
    for (place, value) in changes {
        let mut words = noted(&rig);
        *words.pointer_mut(place).unwrap() = value;
        assert_lost(&rig.followed_over(Behaviour::Echo, record_of(&words)), &queue);
    }
}

#[test]
fn a_record_that_makes_no_sense_is_no_new_device() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    for words in [json!(null), json!("x"), json!({}), json!([1, 2]), json!({ "status": 15 })] {
        assert_lost(&rig.followed_over(Behaviour::Echo, record_of(&words)), &queue);
    }
}

#[test]
fn a_device_with_other_queues_than_are_noted_is_not_started() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    let device = TestDevice::with_lanes(Behaviour::Echo, &[16, 8, 8], vec![0..1, 1..3]);
    let next = Rig::over(device, rig.memory.clone(), Arc::clone(&rig.cache), left_behind(&rig.record));
    assert_eq!((next.registers.status(), next.device.starts.load(SeqCst)), (15 | NEEDS_RESET, 0));
}

/// Whatever was found in the record: its driver is answered, never has a device that runs without its having been
/// negotiated, and gets a good one by a reset.
fn assert_holds(rig: &Rig, record: Record) {
    let next = rig.followed_over(Behaviour::Echo, record);
    let state = next.registers.status();
    if state & status::DRIVER_OK == 0 {
        assert_eq!(next.device.starts.load(SeqCst), 0, "status {state:#x}");
    } else {
        assert_eq!(state & 15, 15);
    }
    next.registers.reset();
    assert_eq!(next.registers.status(), 0);
    let queue = next.queue(0);
    next.registers.bring_up(VERSION_1, &queue);
    assert_works(&next, &queue);
}

/// The places of a JSON value that can be replaced.
fn places(words: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match words {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| places(value, &format!("{at}/{name}"), all)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(nth, value)| places(value, &format!("{at}/{nth}"), all));
        }
        _ => {}
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0..256_u64).prop_map(|number| json!(number)),
        4 => any::<u64>().prop_map(|number| json!(number)),
        1 => any::<i32>().prop_map(|number| json!(number)),
        1 => any::<f64>().prop_map(|number| json!(number)),
        1 => any::<bool>().prop_map(|flag| json!(flag)),
        2 => prop_oneof![Just("off"), Just("ready"), Just("")].prop_map(|text| json!(text)),
        2 => any::<bool>().prop_map(|by_reset| json!({ "stopping": { "by_reset": by_reset } })),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => Just(Value::Null),
    ]
}

/// Lets `test` hold for so many values.
fn for_any<S: Strategy>(values: &S, test: impl Fn(S::Value)) {
    let config = ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() };
    let test = |value| {
        test(value);
        Ok(())
    };
    TestRunner::new(config).run(values, test).unwrap();
}

#[test]
fn whatever_registers_are_noted_the_driver_is_answered_and_can_reset() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    for_any(&prop::collection::vec((any::<Index>(), any_value()), 1..6), |changes| {
        let mut words = noted(&rig);
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&words, "", &mut all);
            let place: &String = place.get(&all);
            *words.pointer_mut(place).unwrap() = value;
        }
        assert_holds(&rig, record_of(&words));
    });
}

#[test]
fn whatever_bytes_are_left_the_driver_is_answered_and_can_reset() {
    // Over either side of the words of the registers, and over the ledgers.
    const PLACES: [u64; 3] = [0x2000, 0xa000, 0x23000];
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    let change = (any::<Index>(), 0..600_u64, prop::collection::vec(any::<u8>(), 1..9));
    for_any(&prop::collection::vec(change, 1..5), |changes| {
        let record = left_behind(&rig.record);
        for (place, offset, bytes) in changes {
            pwrite(&record, &bytes, place.get(&PLACES) + offset).unwrap();
        }
        assert_holds(&rig, record);
    });
}
