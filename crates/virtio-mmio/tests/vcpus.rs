//! Several vCPUs and lanes at a time: what only goes wrong when they race.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use rig::{EVENT_IDX, Pending, RING_RESET, Rig, VERSION_1};
use testkit::device::{Behaviour, eventually};
use testkit::driver::{Register, Registers};

/// Numbers without a pattern, the same in each run (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll() as usize % from.len()]
    }
}

/// A driver that sleeps until it is interrupted, as real ones do, and looks at its ring only then.
fn requests_by_interrupt(features: u64, requests: u16) {
    let rig = Rig::new(Behaviour::Echo);
    let queue = rig.queue(0);
    rig.registers.bring_up(features, &queue);
    let (mut offered, mut done, mut seen) = (0u16, 0u16, 0);
    while done != requests {
        while offered.wrapping_sub(done) < 3 && offered != requests {
            rig.offer(&queue);
            offered += 1;
        }
        eventually("the driver is interrupted", || rig.line.raised() > seen);
        seen = rig.line.raised();
        rig.registers.acknowledge();
        loop {
            done = queue.used_idx();
            queue.set_used_event(done);
            // As Linux does it: asks, then looks once more.
            std::sync::atomic::fence(SeqCst);
            if done == queue.used_idx() {
                break;
            }
        }
    }
}

#[test]
fn c15_no_interrupt_is_lost_however_acknowledgement_and_completion_race() {
    requests_by_interrupt(VERSION_1, 20_000);
}

#[test]
fn c15_nor_with_event_index() {
    requests_by_interrupt(VERSION_1 | EVENT_IDX, 20_000);
}

#[test]
fn c15_a_config_change_is_not_lost_among_used_buffers() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    let mut seen = 0;
    for _ in 0..500 {
        thread::scope(|scope| {
            scope.spawn(|| rig.signals().config_changed());
            rig.offer(&queue);
            let mut causes = 0;
            while causes & 2 == 0 {
                eventually("the driver is interrupted", || rig.line.raised() > seen);
                seen = rig.line.raised();
                causes = rig.registers.acknowledge();
            }
        });
    }
}

#[test]
fn c18_a_queue_reset_that_meets_the_end_of_a_broken_device_is_answered() {
    for _ in 0..1_000 {
        let (rig, queue) = Rig::running(Behaviour::Fault);
        thread::scope(|scope| {
            scope.spawn(|| rig.offer(&queue));
            for _ in 0..20 {
                rig.registers.write(Register::QueueReset, 1);
                rig.registers.write(Register::QueueReady, 0);
                rig.registers.write(Register::QueueReady, 1);
            }
        });
        rig.registers.reset();
        assert_eq!(rig.registers.status(), 0);
    }
}

#[test]
fn c12_vcpus_that_write_anything_at_random_leave_a_device_that_works_after_reset() {
    let registers = [
        Register::Status,
        Register::QueueReady,
        Register::QueueReset,
        Register::QueueNotify,
        Register::QueueSel,
        Register::QueueNum,
        Register::InterruptAck,
        Register::DriverFeatures,
        Register::QueueDescLow,
    ];
    for behaviour in [Behaviour::Echo, Behaviour::Fault] {
        let rig = Rig::new(behaviour);
        thread::scope(|scope| {
            for seed in 0..4 {
                let rig = &rig;
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    for _ in 0..2_000 {
                        if dice.roll().is_multiple_of(16) && rig.registers.negotiate(VERSION_1 | RING_RESET) {
                            rig.registers.set_up_queue(dice.roll() % 3, &rig.queue(seed));
                            rig.registers.write(Register::Status, 15);
                        }
                        let value = [0, 0, 1, 1, 2, 3, 15, 0xffff_ffff];
                        rig.registers.write(dice.pick(&registers), dice.pick(&value));
                        rig.registers.load(u64::from(dice.roll() % 0x200), 4);
                    }
                });
            }
        });
        rig.registers.reset();
        assert_eq!(rig.registers.status(), 0);
        *rig.device.behaviour.lock().unwrap() = Behaviour::Echo;
        let queue = rig.queue(0);
        rig.registers.bring_up(VERSION_1, &queue);
        rig.offer(&queue);
        queue.wait_used(1);
        Pending::from(rig.registers.stop()).wait();
        assert_eq!(rig.device.workers.load(SeqCst), 0);
    }
}
