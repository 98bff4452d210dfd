//! Rings whose indexes and flags lie or change: rows D09, D11 to D15 and D18.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use testkit::cases::{count, each};
use testkit::device::eventually;
use testkit::driver::{Descriptor, Register, Registers, status};

use crate::guest::{BANK_END, EVENT_IDX, Guest, RAM_END, READABLE, SIZE, TABLES, WRITABLE, linked};
use crate::hosts::Kind;

#[test]
fn d09_an_available_index_that_jumps_breaks_any_device_until_reset() {
    let beyond = (1..=4).chain([0x7ff, 0x7fff, 0x8000, 0xff00, 0xfff0]).map(|more| SIZE + more);
    // What was made available already is not taken back.
    let backwards = (1..=SIZE).map(u16::wrapping_neg);
    let jumps: Vec<_> = beyond.chain(backwards).collect();
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queues = kind.prompt_queues().iter().chain(kind.receive_queues());
        let inputs = queues.flat_map(|queue| jumps.iter().map(move |jump| (*queue, *jump)));
        let inputs = inputs.flat_map(|(queue, jump)| [0, 1, 3].map(|served| (kind, queue, jump, served)));
        each(inputs, |(_, queue, jump, served)| {
            guest.reset();
            guest.bring_up();
            (0..served).for_each(|_| guest.works());
            let raw = guest.queue(queue);
            raw.set_avail_idx(raw.avail_idx().wrapping_add(jump));
            guest.registers.notify(queue);
            if kind.receive_queues().contains(&queue) {
                guest.host.nudge();
            }
            // A device that waits for the host with buffers that an honest driver gave it has not looked yet.
            if guest.queue(queue).used_idx() == raw.avail_idx().wrapping_sub(jump) {
                guest.expect_broken("the index is found out");
            }
            guest.works_after_reset();
        });
    }
}

#[test]
fn d11_indexes_wrap_at_65536_with_and_without_event_indexes() {
    // For the kind that does the least for a request; a ring is the same for all.
    for event_idx in [0, EVENT_IDX] {
        let guest = Guest::new(Kind::Rng);
        guest.set_up(guest.features() | event_idx);
        guest.registers.add_status(status::DRIVER_OK);
        let queue = guest.queue(0);
        (0..SIZE).for_each(|slot| queue.write_descriptor(slot, Descriptor::writable(WRITABLE, 4)));
        let rounds = (1_u32 << 16) + 2 * u32::from(SIZE);
        for made in (0..rounds).step_by(usize::from(SIZE)) {
            (0..SIZE).for_each(|slot| queue.publish(slot));
            queue.set_used_event(queue.avail_idx().wrapping_sub(1));
            guest.registers.notify(0);
            queue.wait_used((made + u32::from(SIZE)) as u16);
        }
        assert!(!guest.is_broken());
        count(rounds.into());
    }
}

#[test]
fn d12_event_fields_that_are_no_memory_break_any_device_until_reset() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        // The last two bytes of either ring, and nothing else, lie behind the end of memory.
        let (driver, device) = (2 * u64::from(SIZE) + 4, 8 * u64::from(SIZE) + 4);
        let rings = [
            (Register::QueueDriverLow, Register::QueueDriverHigh, driver),
            (Register::QueueDeviceLow, Register::QueueDeviceHigh, device),
        ];
        let inputs = rings.iter().flat_map(|ring| [RAM_END, BANK_END].map(|end| (*ring, end)));
        let inputs = inputs.flat_map(|(ring, end)| [0, EVENT_IDX].map(|event_idx| (kind, ring, end, event_idx)));
        each(inputs, |(_, (low, high, len), end, event_idx)| {
            guest.reset();
            guest.set_up(guest.features() | event_idx);
            guest.registers.write(Register::QueueSel, kind.prompt_queues()[0]);
            guest.registers.write(Register::QueueReady, 0);
            guest.registers.write_address(low, high, end - len);
            guest.registers.write(Register::QueueReady, 1);
            guest.registers.add_status(status::DRIVER_OK);
            guest.expect_broken("the ring's end is no memory");
            guest.works_after_reset();
        });
    }
}

#[test]
fn d13_whatever_is_asked_of_interrupts_every_request_is_served() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        for event_idx in [0, EVENT_IDX] {
            guest.reset();
            guest.set_up(guest.features() | event_idx);
            guest.registers.add_status(status::DRIVER_OK);
            let words = [0, 1, 2, 7, 8, 0x7fff, 0x8000, 0xfffe, 0xffff];
            let inputs = words.iter().flat_map(|flags| words.map(|event| (kind, event_idx != 0, *flags, event)));
            each(inputs, |(_, _, flags, event)| {
                for queue in &guest.queues {
                    queue.set_avail_flags(flags);
                    queue.set_used_event(event);
                }
                guest.works();
            });
        }
    }
}

/// The same numbers each time: xorshift.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), |last| {
        let mut next = *last;
        next ^= next << 13;
        next ^= next >> 7;
        Some(next ^ (next << 17))
    })
}

#[test]
fn d14_rings_and_tables_that_another_vcpu_rewrites_cost_a_device_no_more_than_itself() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queues = kind.prompt_queues().iter().chain(kind.receive_queues());
        each(queues.flat_map(|queue| (0..12).map(move |seed| (kind, *queue, seed))), |(_, queue, seed)| {
            guest.reset();
            guest.bring_up();
            let raw = guest.queue(queue).clone();
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    for noise in noise(seed + 1).take_while(|_| !over.load(Relaxed)) {
                        let [slot, len, flags, next] = [0, 16, 32, 48].map(|shift| (noise >> shift) as u16);
                        let place = if flags & 0x100 == 0 { READABLE } else { WRITABLE };
                        let addr = if flags & 0x200 == 0 { place + u64::from(next) } else { noise };
                        let descriptor =
                            Descriptor { addr, len: len.into(), flags: flags & 7, next: next % (SIZE + 1) };
                        raw.write_descriptor(slot % SIZE, descriptor);
                        raw.write_indirect(TABLES + 16 * u64::from(slot % 4), &[descriptor]);
                    }
                });
                for noise in noise(seed + 100).take(200) {
                    let raw = guest.queue(queue);
                    raw.publish((noise % u64::from(SIZE)) as u16);
                    guest.registers.notify(queue);
                    if noise & 0xf00 == 0 {
                        guest.host.nudge();
                    }
                }
                over.store(true, Relaxed);
            });
            guest.works_after_reset();
        });
    }
}

#[test]
fn d15_a_driver_that_waits_for_nothing_has_no_more_in_flight_than_the_queue_holds() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        each((1..=20).map(|kicks| (kind, kicks)), |(_, kicks)| {
            guest.reset();
            guest.bring_up();
            let request = guest.host.request();
            let queue = guest.queue(request.queue);
            let table = queue.write_indirect(TABLES, &linked(&guest.buffers(&request)));
            (0..SIZE).for_each(|slot| queue.write_descriptor(slot, table));
            let mut published = 0_u16;
            for _ in 0..kicks {
                (0..SIZE).for_each(|slot| queue.publish(slot));
                published += SIZE;
                guest.registers.notify(request.queue);
                // Never is more held than the queue has entries, each of one chunk or two.
                assert!(guest.cache.stats().bytes_pinned <= 2 * 64 * 1024 * u64::from(SIZE));
            }
            eventually("all is served, or the device has found out", || {
                guest.is_broken() || queue.used_idx() == published
            });
            guest.works_after_reset();
        });
    }
}

#[test]
fn d18_a_queue_that_is_kicked_without_end_does_not_keep_the_others_of_its_device_waiting() {
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.receive_queues().is_empty()) {
        let guest = Guest::new(kind);
        guest.bring_up();
        let (busy, over) = (kind.receive_queues()[0], AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    guest.registers.notify(busy);
                }
            });
            each((0..50).map(|round| (kind, round)), |_| guest.works());
            over.store(true, Relaxed);
        });
        guest.works_after_reset();
    }
}
