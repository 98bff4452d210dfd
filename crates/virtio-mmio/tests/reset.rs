//! The end of a run: reset with I/O in flight, queue reset, removal; and nothing left behind.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rig::{Pending, RING_RESET, Rig, VERSION_1};
use testkit::device::{Behaviour, eventually};
use testkit::driver::{RawQueue, Register, Registers, status};
use virtio_mmio::DriverState;

#[test]
fn spec_2_4_1_a_reset_brings_back_every_register() {
    let rig = Rig::new(Behaviour::Echo);
    let all = |rig: &Rig| -> Vec<_> { (0..0xfc).step_by(4).map(|offset| rig.registers.load(offset, 4)).collect() };
    let fresh = all(&rig);
    let queue = rig.queue(0);
    rig.registers.bring_up(VERSION_1 | RING_RESET, &queue);
    rig.offer(&queue);
    eventually("the driver is told", || rig.line.raised() == 1);
    for select in [Register::DeviceFeaturesSel, Register::DriverFeaturesSel, Register::QueueSel] {
        rig.registers.write(select, 1);
    }
    assert_ne!(all(&rig), fresh);
    rig.registers.reset();
    assert_eq!(all(&rig), fresh);
}

#[test]
fn c12_a_reset_is_answered_when_nothing_is_in_flight_and_others_are_answered_meanwhile() {
    let (rig, queue) = Rig::busy();
    let reset = rig.begin(Register::Status, 0);

    assert_eq!(rig.registers.status(), 15, "it is not reset yet");
    assert_eq!(rig.registers.read(Register::QueueReady), 1);
    assert_eq!(rig.registers.load(0x100, 4), 0x0403_0201);
    assert!(rig.begin(Register::QueueNotify, 0).is_answered());
    assert!(rig.begin(Register::InterruptAck, 3).is_answered());
    assert!(!reset.is_answered());

    rig.device.gate.open();
    reset.wait();
    assert_eq!((rig.registers.status(), rig.registers.read(Register::QueueReady)), (0, 0));
    assert_eq!(rig.registers.read(Register::InterruptStatus), 0);
    assert_eq!((queue.used_idx(), rig.device.workers.load(SeqCst)), (1, 0));
}

#[test]
fn c12_a_second_reset_waits_for_the_same_end() {
    let (rig, _queue) = Rig::busy();
    let resets: Vec<_> = (0..3).map(|_| rig.begin(Register::Status, 0)).collect();
    assert!(!resets.iter().any(Pending::is_answered));
    rig.device.gate.open();
    resets.iter().for_each(Pending::wait);
    assert!(rig.begin(Register::Status, 0).is_answered());
}

#[test]
fn c12_nothing_is_set_up_while_a_reset_is_under_way() {
    let (rig, _queue) = Rig::busy();
    let reset = rig.begin(Register::Status, 0);
    rig.registers.write(Register::QueueSel, 1);
    rig.registers.write(Register::Status, 15 | status::FAILED);
    rig.registers.write(Register::QueueReady, 0);
    rig.registers.write(Register::QueueReset, 1);
    assert_eq!((rig.registers.status(), rig.registers.read(Register::QueueNumMax)), (15, 16));
    rig.device.gate.open();
    reset.wait();
    assert_eq!(rig.registers.read(Register::QueueNumMax), 16);
}

#[test]
fn c12_after_the_answer_the_device_does_not_touch_the_memory_again() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    for _ in 0..200 {
        queue.clear();
        (0..4).for_each(|_| rig.offer(&queue));
        rig.registers.reset();
        // The guest uses the memory for something else at once.
        let len = usize::try_from(queue.end() - queue.desc_table()).unwrap();
        rig.memory.write(queue.desc_table(), &vec![0x5a; len]);
        std::thread::yield_now();
        let mut found = vec![0; len];
        rig.memory.read(queue.desc_table(), &mut found);
        assert!(found.iter().all(|byte| *byte == 0x5a));
        assert_eq!(rig.registers.read(Register::InterruptStatus), 0);
        queue.clear();
        rig.registers.bring_up(VERSION_1, &queue);
    }
}

#[test]
fn c12_a_device_that_broke_is_reset_when_its_other_lanes_have_finished() {
    let (rig, _queue) = Rig::busy();
    rig.signals().needs_reset(&virtio_backend::Fault::Bug("as told".into()));
    eventually("the idle lane ends", || rig.device.workers.load(SeqCst) == 1);
    assert_eq!(rig.registers.state(), DriverState::NeedsReset);
    let reset = rig.begin(Register::Status, 0);
    assert!(!reset.is_answered());
    rig.device.gate.open();
    reset.wait();
    assert_eq!(rig.registers.state(), DriverState::Reset);
}

#[test]
fn c12_a_worker_that_panics_instead_of_finishing_does_not_hold_up_the_reset() {
    let (rig, queue) = Rig::running(Behaviour::PanicInDrain);
    rig.offer(&queue);
    eventually("the device takes the request", || rig.device.held.load(SeqCst) == 1);
    rig.registers.reset();
    assert_eq!((rig.registers.status(), rig.registers.read(Register::InterruptStatus)), (0, 0));
    assert_eq!(rig.device.workers.load(SeqCst), 0);
    assert_works(&rig);
}

#[test]
fn c13_nor_do_a_thousand_faults_leave_anything_behind() {
    let (rig, queue) = Rig::running(Behaviour::Fault);
    let cycle = || {
        rig.offer(&queue);
        eventually("the device breaks", || rig.registers.state() == DriverState::NeedsReset);
        rig.registers.reset();
        queue.clear();
        rig.registers.bring_up(VERSION_1 | RING_RESET, &queue);
    };
    (0..10).for_each(|_| cycle());
    let before = open_files();
    (0..1_000).for_each(|_| cycle());
    assert!(open_files() < before + 200, "{} files, {before} before", open_files());
    rig.registers.reset();
    assert_eq!(rig.device.workers.load(SeqCst), 0);
}

#[test]
fn c13_ten_thousand_resets_leave_nothing_behind() {
    let rig = Rig::new(Behaviour::Echo);
    let queue = rig.queue(0);
    let cycle = || {
        queue.clear();
        rig.registers.bring_up(VERSION_1, &queue);
        rig.registers.reset();
    };
    (0..10).for_each(|_| cycle());
    // Other tests of this process come and go: what counts is what grows with the cycles.
    let before = open_files();
    (0..10_000).for_each(|_| cycle());
    assert!(open_files() < before + 200, "{} files, {before} before", open_files());
    assert_eq!((rig.device.workers.load(SeqCst), rig.memory.counts().live), (0, rig.cache_mappings()));
    eventually("the threads are gone", || threads_named("test.") < 50);
}

impl Rig {
    /// Mappings that the cache keeps for the next request.
    fn cache_mappings(&self) -> u64 {
        self.cache.stats().bytes_mapped.div_ceil(guest_memory::CHUNK_SIZE)
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

#[test]
fn spec_2_6_1_a_queue_is_reset_when_its_requests_are_done_and_works_again_with_another_size() {
    let (rig, queue) = Rig::busy();
    assert!(rig.begin(Register::QueueReset, 1).is_answered());
    assert_eq!((rig.registers.read(Register::QueueReset), rig.registers.read(Register::QueueReady)), (1, 1));

    rig.device.gate.open();
    eventually("the reset is done", || rig.registers.read(Register::QueueReset) == 0);
    assert_eq!((rig.registers.read(Register::QueueReady), queue.used_idx()), (0, 1));
    rig.registers.notify(0);
    rig.offer(&queue);
    assert_eq!(rig.counter("ignored"), 2, "kicks of a queue out of service");

    let smaller = RawQueue::new(rig.memory.clone(), rig::RAM + 0x5000, 4);
    smaller.clear();
    rig.registers.set_up_queue(0, &smaller);
    assert_eq!((rig.registers.read(Register::QueueReset), rig.registers.read(Register::QueueReady)), (0, 1));
    smaller.write_descriptor(0, testkit::driver::Descriptor::writable(rig::BUFFERS, 4));
    smaller.publish(0);
    rig.registers.notify(0);
    eventually("the device takes the request", || rig.device.held.load(SeqCst) == 2);
    rig.registers.write(Register::QueueReady, 0);
    assert_eq!((smaller.used_idx(), queue.used_idx()), (1, 1));
}

#[test]
fn c18_queue_reset_without_the_feature_or_with_another_value_does_nothing() {
    let rig = Rig::new(Behaviour::Echo);
    rig.registers.bring_up(VERSION_1, &rig.queue(0));
    rig.registers.write(Register::QueueReset, 1);
    assert_eq!((rig.registers.read(Register::QueueReset), rig.registers.read(Register::QueueReady)), (0, 1));

    let (rig, _queue) = Rig::running(Behaviour::Echo);
    for value in [0, 2, u32::MAX] {
        rig.registers.write(Register::QueueReset, value);
        assert_eq!((rig.registers.read(Register::QueueReset), rig.registers.read(Register::QueueReady)), (0, 1));
    }
}

#[test]
fn c18_a_queue_that_is_not_in_use_is_reset_at_once() {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1 | RING_RESET));
    rig.registers.set_up_queue(0, &rig.queue(0));
    for _ in 0..2 {
        rig.registers.write(Register::QueueReset, 1);
        assert_eq!((rig.registers.read(Register::QueueReset), rig.registers.read(Register::QueueReady)), (0, 0));
    }
}

#[test]
fn c18_a_reset_of_the_device_overtakes_the_reset_of_a_queue() {
    let (rig, _queue) = Rig::busy();
    rig.registers.write(Register::QueueReset, 1);
    let reset = rig.begin(Register::Status, 0);
    rig.registers.write(Register::QueueReset, 1);
    assert!(!reset.is_answered());
    rig.device.gate.open();
    reset.wait();
    assert_eq!((rig.registers.status(), rig.registers.read(Register::QueueReset)), (0, 0));
    assert_works(&rig);
}

#[test]
fn c18_a_queue_of_a_broken_device_is_reset_when_the_lanes_have_ended() {
    let (rig, _queue) = Rig::busy();
    rig.signals().needs_reset(&virtio_backend::Fault::Bug("as told".into()));
    rig.registers.write(Register::QueueReset, 1);
    assert_eq!(rig.registers.read(Register::QueueReset), 1);
    rig.device.gate.open();
    eventually("the reset is done", || rig.registers.read(Register::QueueReset) == 0);
    rig.registers.reset();
    assert_works(&rig);
}

#[test]
fn c07_queue_ready_0_is_answered_when_the_queue_is_out_of_use() {
    let (rig, queue) = Rig::busy();
    let disable = rig.begin(Register::QueueReady, 0);
    assert!(!disable.is_answered());
    assert_eq!(rig.registers.read(Register::QueueReady), 1);
    assert!(rig.begin(Register::QueueReady, 0).is_answered(), "a second one is not kept waiting");
    rig.device.gate.open();
    disable.wait();
    assert_eq!((rig.registers.read(Register::QueueReady), queue.used_idx()), (0, 1));
}

#[test]
fn queue_resets_and_kicks_in_a_row_lose_no_request() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    for _ in 0..300 {
        rig.registers.write(Register::QueueReset, 1);
        eventually("the reset is done", || rig.registers.read(Register::QueueReset) == 0);
        queue.clear();
        rig.registers.set_up_queue(0, &queue);
        rig.offer(&queue);
        queue.wait_used(1);
    }
    assert_eq!(rig.registers.state(), DriverState::DriverOk);
}

#[test]
fn removal_waits_for_what_is_in_flight_and_is_final() {
    let (rig, _queue) = Rig::busy();
    let reset = rig.begin(Register::Status, 0);
    let stops = [Pending::from(rig.registers.stop()), Pending::from(rig.registers.stop())];
    assert!(!stops.iter().any(Pending::is_answered));
    rig.device.gate.open();
    stops.iter().for_each(Pending::wait);
    reset.wait();
    rig.registers.write(Register::Status, 3);
    assert_eq!(rig.registers.status(), 0);
    assert!(rig.begin(Register::Status, 0).is_answered());
    assert!(Pending::from(rig.registers.stop()).is_answered());
}

#[test]
fn a_register_file_that_is_dropped_takes_its_lanes_along() {
    let (rig, _queue) = Rig::busy();
    let Rig { device, registers, .. } = rig;
    drop(registers);
    device.gate.open();
    eventually("the lanes end", || device.workers.load(SeqCst) == 0);
    eventually("they let go of the device", || Arc::strong_count(&device) == 1);
}

#[test]
fn memory_that_no_request_holds_is_let_go_of_on_demand() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    rig.offer(&queue);
    queue.wait_used(1);
    // Again and again: the lane may be about to look something up once more.
    eventually("all is unmapped", || {
        rig.cache.invalidate();
        rig.registers.release_memory();
        rig.cache.sweep();
        rig.memory.counts().live == 0
    });
}

fn assert_works(rig: &Rig) {
    *rig.device.behaviour.lock().unwrap() = Behaviour::Echo;
    let queue = rig.queue(0);
    rig.registers.bring_up(VERSION_1, &queue);
    rig.offer(&queue);
    queue.wait_used(1);
}
