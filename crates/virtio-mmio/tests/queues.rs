//! Queues as a driver sets them up, right and wrong, and what becomes of a device whose queues break.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::atomic::Ordering::SeqCst;

use rig::{BUFFERS, EVENT_IDX, RAM, RAM_LEN, RING_RESET, Rig, VERSION_1};
use testkit::device::{Behaviour, eventually};
use testkit::driver::{Descriptor, RawQueue, Register, Registers, status};
use virtio_mmio::DriverState;

/// A device whose driver has one more thing to do before it says DRIVER_OK.
fn negotiated() -> Rig {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1));
    rig
}

fn assert_breaks_at_driver_ok(rig: &Rig, why: &str) {
    rig.registers.add_status(status::DRIVER_OK);
    eventually(why, || rig.registers.state() == DriverState::NeedsReset);
    eventually("the driver is told", || rig.line.raised() == 1);
    assert_eq!(rig.registers.acknowledge(), 2, "{why}");
}

#[test]
fn a_request_makes_the_round_trip() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    rig.offer(&queue);
    let used = queue.wait_used(1);
    let mut answer = [0; 4];
    rig.memory.read(BUFFERS + 0x100, &mut answer);
    assert_eq!((used.id, used.len, &answer), (0, 4, b"ping"));
    eventually("the driver is told", || rig.line.raised() == 1);
    assert_eq!(rig.registers.acknowledge(), 1);
}

#[test]
fn c05_an_impossible_queue_size_is_found_at_driver_ok() {
    for size in [0, 3, 7, 17, 32, 0x8000, 0xffff, 0x1_0000, 0x1_0008, 1 << 31, u32::MAX] {
        let rig = negotiated();
        rig.registers.write(Register::QueueNum, size);
        rig.registers.set_up_queue_as_is();
        assert_breaks_at_driver_ok(&rig, &format!("a queue of {size} entries"));
    }
}

trait AsIs {
    fn set_up_queue_as_is(&self);
}

impl<R: Registers> AsIs for R {
    /// Three places that would do, whatever the size.
    fn set_up_queue_as_is(&self) {
        self.write_address(Register::QueueDescLow, Register::QueueDescHigh, RAM);
        self.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, RAM + 0x1000);
        self.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, RAM + 0x2000);
        self.write(Register::QueueReady, 1);
    }
}

#[test]
fn c06_a_queue_that_is_ready_cannot_be_changed() {
    let rig = negotiated();
    let queue = rig.queue(0);
    rig.registers.set_up_queue(0, &queue);
    // All of it again, as of another queue; QueueReady the second time.
    rig.registers.set_up_queue(0, &RawQueue::new(rig.memory.clone(), 0x10, 3));
    rig.registers.add_status(status::DRIVER_OK);
    rig.offer(&queue);
    queue.wait_used(1);
    assert_eq!(rig.counter("ignored"), 8);
}

#[test]
fn c06_without_ring_reset_no_queue_is_set_up_after_driver_ok() {
    let rig = negotiated();
    rig.registers.set_up_queue(0, &rig.queue(0));
    rig.registers.add_status(status::DRIVER_OK);
    rig.registers.set_up_queue(1, &rig.queue(1));
    assert_eq!(rig.registers.read(Register::QueueReady), 0);
}

#[test]
fn c07_queue_ready_takes_0_and_1_only() {
    let rig = negotiated();
    for value in [2, 3, 0x1_0000, 0x8000_0000, u32::MAX] {
        rig.registers.write(Register::QueueReady, value);
        assert_eq!(rig.registers.read(Register::QueueReady), 0, "{value:#x}");
    }
}

#[test]
fn c07_a_queue_that_is_ready_before_it_has_addresses_breaks_its_device() {
    let rig = negotiated();
    rig.registers.write(Register::QueueReady, 1);
    assert_breaks_at_driver_ok(&rig, "rings at address 0");
}

#[test]
fn c07_queue_ready_0_before_driver_ok_takes_the_queue_back() {
    let rig = negotiated();
    rig.registers.write(Register::QueueReady, 1);
    rig.registers.write(Register::QueueReady, 0);
    let queue = rig.queue(0);
    rig.registers.set_up_queue(0, &queue);
    rig.registers.add_status(status::DRIVER_OK);
    rig.offer(&queue);
    queue.wait_used(1);
}

#[test]
fn c08_rings_that_are_unaligned_or_outside_memory_break_their_device() {
    let areas = [
        (Register::QueueDescLow, Register::QueueDescHigh, 8),
        (Register::QueueDriverLow, Register::QueueDriverHigh, 1),
        (Register::QueueDeviceLow, Register::QueueDeviceHigh, 2),
    ];
    for (low, high, unaligned) in areas {
        for address in [RAM + unaligned, RAM - 0x1000, RAM + RAM_LEN, RAM + RAM_LEN - 16, !0xf, 1 << 63] {
            let rig = negotiated();
            rig.registers.write_address(Register::QueueDescLow, Register::QueueDescHigh, RAM);
            rig.registers.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, RAM + 0x1000);
            rig.registers.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, RAM + 0x2000);
            rig.registers.write_address(low, high, address);
            rig.registers.write(Register::QueueNum, 8);
            rig.registers.write(Register::QueueReady, 1);
            assert_breaks_at_driver_ok(&rig, &format!("{low:?} at {address:#x}"));
        }
    }
}

#[test]
fn c08_rings_that_overlap_hurt_nobody_but_the_guest() {
    let rig = negotiated();
    rig.registers.write_address(Register::QueueDescLow, Register::QueueDescHigh, RAM);
    rig.registers.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, RAM);
    rig.registers.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, RAM);
    rig.registers.write(Register::QueueReady, 1);
    rig.registers.add_status(status::DRIVER_OK);
    for index in 0..100u32 {
        rig.memory.write(RAM, &[index.to_le_bytes(), [0xff; 4]].concat());
        rig.registers.notify(0);
    }
    rig.registers.reset();
    let queue = rig.queue(0);
    rig.registers.bring_up(VERSION_1, &queue);
    rig.offer(&queue);
    queue.wait_used(1);
}

#[test]
fn c16_a_pass_interrupts_once_however_many_buffers_want_to() {
    let rig = Rig::new(Behaviour::Echo);
    let queue = rig.queue(0);
    assert!(rig.registers.negotiate(VERSION_1 | EVENT_IDX));
    rig.registers.set_up_queue(0, &queue);
    for head in 0..8 {
        queue.write_descriptor(head, Descriptor::writable(BUFFERS, 4));
        queue.publish(head);
    }
    queue.set_used_event(3);
    rig.registers.add_status(status::DRIVER_OK);
    queue.wait_used(8);
    eventually("the pass ends", || rig.counter("completions") == 8);
    rig.registers.reset();
    assert_eq!(rig.line.raised(), 1);
}

#[test]
fn c19_a_device_that_the_host_does_not_let_start_needs_reset_and_recovers() {
    let rig = Rig::new(Behaviour::FailStart);
    rig.registers.bring_up(VERSION_1, &rig.queue(0));
    eventually("the device says so", || rig.registers.status() == 15 | status::DEVICE_NEEDS_RESET);
    *rig.device.behaviour.lock().unwrap() = Behaviour::Echo;
    assert_works_after_reset(&rig);
}

#[test]
fn spec_2_1_2_a_fault_shows_needs_reset_and_interrupts_once_though_every_lane_faults() {
    for behaviour in [Behaviour::Fault, Behaviour::Panic] {
        let rig = Rig::new(behaviour);
        assert!(rig.registers.negotiate(VERSION_1));
        for index in [0, 1] {
            let queue = rig.queue(index);
            queue.write_descriptor(0, Descriptor::writable(BUFFERS, 4));
            queue.publish(0);
            rig.registers.set_up_queue(u32::try_from(index).unwrap(), &queue);
        }
        rig.registers.add_status(status::DRIVER_OK);
        eventually("a lane faults", || rig.registers.state() == DriverState::NeedsReset);
        eventually("all lanes end", || rig.device.workers.load(SeqCst) == 0);
        eventually("the driver is told", || rig.line.raised() == 1);
        assert_eq!(rig.registers.acknowledge(), 2);

        *rig.device.behaviour.lock().unwrap() = Behaviour::Echo;
        assert_works_after_reset(&rig);
    }
}

#[test]
fn spec_2_1_2_a_fault_before_driver_ok_shows_but_does_not_interrupt() {
    let rig = negotiated();
    rig.signals().needs_reset(&virtio_backend::Fault::Bug("as told".into()));
    rig.registers.add_status(status::DRIVER_OK);
    assert_eq!((rig.registers.status(), rig.line.raised()), (11 | status::DEVICE_NEEDS_RESET, 0));
    assert_works_after_reset(&rig);
}

#[test]
fn a_chain_that_loops_breaks_its_device_until_reset() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    queue.write_descriptor(0, Descriptor::readable(BUFFERS, 4).then(0));
    queue.publish(0);
    rig.registers.notify(0);
    eventually("the device breaks", || rig.registers.state() == DriverState::NeedsReset);
    let ignored = rig.counter("ignored");
    rig.registers.notify(0);
    assert_eq!(rig.counter("ignored"), ignored + 1, "a broken device hears no kicks");
    assert_works_after_reset(&rig);
}

#[test]
fn a17_an_interrupt_that_the_host_refuses_is_counted_and_the_device_goes_on() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    rig.line.is_broken.store(true, SeqCst);
    rig.offer(&queue);
    queue.wait_used(1);
    eventually("the loss is counted", || rig.counter("interrupts_lost") == 1);
    rig.offer(&queue);
    queue.wait_used(2);
}

fn assert_works_after_reset(rig: &Rig) {
    rig.registers.reset();
    assert_eq!((rig.registers.status(), rig.registers.read(Register::InterruptStatus)), (0, 0));
    let queue = rig.queue(0);
    rig.registers.bring_up(VERSION_1 | RING_RESET, &queue);
    rig.offer(&queue);
    queue.wait_used(1);
}
