//! Queues as drivers set them up and change them: rows C03 to C08 and C18.

use testkit::cases::each;
use testkit::device::eventually;
use testkit::driver::{RawQueue, Register, Registers, status};

use crate::guest::{BANK, BANK_END, Guest, Outcome, RAM, RAM_END, READABLE, SIZE, TABLES, linked};
use crate::hosts::Kind;
use crate::states::State;

/// Numbers of queues that no device here has.
const NO_QUEUES: [u32; 8] = [16, 17, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// The registers of the selected queue that are written.
const OF_A_QUEUE: [Register; 9] = [
    Register::QueueNum,
    Register::QueueReady,
    Register::QueueDescLow,
    Register::QueueDescHigh,
    Register::QueueDriverLow,
    Register::QueueDriverHigh,
    Register::QueueDeviceLow,
    Register::QueueDeviceHigh,
    Register::QueueReset,
];

/// The addresses of the three areas of a queue.
const AREAS: [(Register, Register); 3] = [
    (Register::QueueDescLow, Register::QueueDescHigh),
    (Register::QueueDriverLow, Register::QueueDriverHigh),
    (Register::QueueDeviceLow, Register::QueueDeviceHigh),
];

#[test]
fn c03_whatever_is_written_for_a_queue_that_does_not_exist_no_queue_changes() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let count = guest.queues.len() as u32;
        let states = State::ALL.into_iter().filter(|state| *state != State::NeedsReset && *state != State::Failed);
        let queues = NO_QUEUES.into_iter().chain([count, count + 1]);
        let inputs = states.flat_map(|state| queues.clone().map(move |queue| (kind, state, queue)));
        each(inputs, |(_, state, queue)| {
            state.enter(&guest);
            guest.registers.write(Register::QueueSel, queue);
            for register in OF_A_QUEUE {
                [0, 1, 3, u32::MAX].iter().for_each(|value| guest.registers.write(register, *value));
            }
            for register in [Register::QueueNumMax, Register::QueueReady, Register::QueueReset] {
                assert_eq!(guest.registers.read(register), 0, "{register:?}");
            }
            if state == State::FeaturesOk {
                guest.registers.add_status(status::DRIVER_OK);
            }
            if state == State::FeaturesOk || state == State::DriverOk {
                guest.works();
            }
        });
    }
}

#[test]
fn c04_kicks_of_queues_that_do_not_exist_are_nothing_to_a_device_in_use() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        guest.bring_up();
        let count = guest.queues.len() as u32;
        let shifted = (0..32).map(|bit| 1_u32 << bit).filter(|queue| *queue >= count);
        each(shifted.chain(NO_QUEUES).chain([count, count + 1]).map(|queue| (kind, queue)), |(_, queue)| {
            let ignored = guest.counter("ignored");
            guest.registers.notify(queue);
            assert_eq!(guest.counter("ignored"), ignored + 1);
            guest.works();
        });
    }
}

#[test]
fn c05_a_size_is_one_that_a_queue_can_have_or_breaks_the_device_until_reset() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let powers = (0..32).map(|bit| 1_u32 << bit);
        let sizes = powers.flat_map(|power| [power - 1, power, power.saturating_add(1)]);
        let sizes = sizes.chain([0x1_0000 + u32::from(SIZE), 0x8000_0000 + u32::from(SIZE), u32::MAX]);
        each(sizes.map(|size| (kind, size)), |(_, size)| {
            guest.reset();
            guest.set_up(guest.features());
            let queue = kind.prompt_queues()[0];
            let most = guest.queue_max(queue);
            // Taken back, and set up again with room for any size.
            guest.registers.write(Register::QueueReady, 0);
            guest.registers.write(Register::QueueNum, size);
            for ((low, high), address) in AREAS.into_iter().zip([TABLES, TABLES + 0x1_0000, TABLES + 0x2_0000]) {
                guest.registers.write_address(low, high, address);
            }
            guest.memory.write(TABLES, &[0; 0x3_0000]);
            guest.registers.write(Register::QueueReady, 1);
            guest.registers.add_status(status::DRIVER_OK);
            if size.is_power_of_two() && size <= most {
                assert_eq!(guest.registers.status(), 15);
            } else {
                guest.expect_broken("no queue has this size");
            }
            guest.works_after_reset();
        });
    }
}

#[test]
fn c06_a_queue_in_use_is_not_changed_by_what_is_written_to_its_registers() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        guest.bring_up();
        let registers =
            OF_A_QUEUE.into_iter().filter(|register| !matches!(register, Register::QueueReady | Register::QueueReset));
        let queues = 0..guest.queues.len() as u32;
        let values = [0, 1, 3, 0x1000, RAM as u32, 0x8000_0000, u32::MAX];
        let inputs = registers.flat_map(|register| {
            queues.clone().flat_map(move |queue| values.map(|value| (kind, queue, register, value)))
        });
        each(inputs, |(_, queue, register, value)| {
            guest.registers.write(Register::QueueSel, queue);
            guest.registers.write(register, value);
            assert_eq!(guest.registers.read(Register::QueueReady), 1);
            guest.works();
        });
    }
}

#[test]
fn c07_queue_ready_with_any_value_before_and_after_addresses_is_taken_back_by_a_reset() {
    let values = [0, 1, 2, 3, 0x80, 0xff, 0x100, 0x101, 0xffff, 0x1_0000, 0x1_0001, 0x8000_0001, u32::MAX];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let inputs = values.iter().flat_map(|first| values.map(|then| (kind, *first, then)));
        each(inputs, |(_, first, then)| {
            guest.reset();
            assert!(guest.registers.negotiate(guest.features()));
            guest.registers.write(Register::QueueSel, kind.prompt_queues()[0]);
            for value in [first, then] {
                guest.registers.write(Register::QueueReady, value);
                assert!(guest.registers.read(Register::QueueReady) <= 1);
            }
            let is_ready = guest.registers.read(Register::QueueReady) == 1;
            assert_eq!(is_ready, then == 1 || first == 1 && then != 0);
            guest.registers.add_status(status::DRIVER_OK);
            if is_ready {
                guest.expect_broken("a queue that is nowhere");
            }
            guest.works_after_reset();
        });
    }
}

#[test]
fn c07_queue_ready_0_amid_requests_is_answered_and_nothing_comes_back_after_it() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        each((0..=SIZE).map(|requests| (kind, requests)), |(_, requests)| {
            guest.reset();
            guest.bring_up();
            let request = guest.host.request();
            let queue = guest.queue(request.queue);
            let table = queue.write_indirect(TABLES, &linked(&guest.buffers(&request)));
            for head in 0..requests {
                queue.write_descriptor(head, table);
                queue.publish(head);
                guest.registers.notify(request.queue);
            }
            guest.registers.write(Register::QueueSel, request.queue);
            guest.registers.write(Register::QueueReady, 0);
            assert_eq!(guest.registers.read(Register::QueueReady), 0);
            let used = queue.used_idx();
            (0..10).for_each(|_| guest.registers.notify(request.queue));
            guest.reset();
            assert_eq!(queue.used_idx(), used, "given back after the end");
            guest.bring_up();
            guest.works();
        });
    }
}

#[test]
fn c08_areas_that_are_unaligned_or_no_memory_break_any_device_until_reset() {
    let far = [0, 0x1000, 0x200_0000, RAM - 0x1000, RAM_END, BANK_END, 1 << 40, 1 << 48, 1 << 52, 1 << 63, !0xfff];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let mut inputs = Vec::new();
        for (area, alignment, bytes) in [(0, 16, 128), (1, 2, 22), (2, 4, 70)] {
            let unaligned = (1..alignment).map(|offset| TABLES + offset);
            // Cut off by the end of memory, by as little as can be: event fields belong to the rings (§2.7).
            let cut = [RAM_END, BANK_END].map(|end| (end - bytes + 2).next_multiple_of(alignment));
            let mut places: Vec<_> = unaligned.chain(far).chain(cut).collect();
            places.retain(|place| *place != BANK);
            inputs.extend(places.into_iter().map(|place| (kind, area, place)));
        }
        each(inputs, |(_, area, place)| {
            guest.reset();
            guest.set_up(guest.features());
            let (low, high) = AREAS[area];
            guest.registers.write(Register::QueueSel, kind.prompt_queues()[0]);
            guest.registers.write(Register::QueueReady, 0);
            guest.registers.write_address(low, high, place);
            guest.registers.write(Register::QueueReady, 1);
            guest.registers.add_status(status::DRIVER_OK);
            guest.expect_broken("an area that cannot be used");
            guest.works_after_reset();
        });
    }
}

#[test]
fn c08_areas_that_overlap_each_other_or_their_buffers_hurt_nobody_else() {
    // The three areas of one queue, anywhere on the same page or on that of another queue.
    let places = [RAM, RAM + 0x80, RAM + 0x1000, READABLE];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let mut inputs = Vec::new();
        for desc in places {
            for driver in places {
                inputs.extend(places.map(|device| (kind, [desc, driver, device])));
            }
        }
        each(inputs, |(_, areas)| {
            guest.reset();
            guest.set_up(guest.features());
            let queue = kind.prompt_queues()[0];
            guest.registers.write(Register::QueueSel, queue);
            guest.registers.write(Register::QueueReady, 0);
            for ((low, high), place) in AREAS.into_iter().zip(areas) {
                guest.registers.write_address(low, high, place);
            }
            guest.registers.write(Register::QueueReady, 1);
            guest.registers.add_status(status::DRIVER_OK);
            for index in 0..6_u32 {
                // Read as descriptors, as an available ring, or as a used one.
                guest.memory.write(areas[1], &(index << 16).to_le_bytes());
                guest.memory.write(areas[0], &[&READABLE.to_le_bytes()[..], &[64, 0, 0, 0, 0, 0, 0, 0]].concat());
                guest.registers.notify(queue);
            }
            guest.works_after_reset();
        });
    }
}

#[test]
fn c08_two_queues_with_the_same_rings_hurt_nobody_else() {
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.receive_queues().is_empty()) {
        let guest = Guest::new(kind);
        let count = guest.queues.len() as u32;
        let pairs =
            (0..count).flat_map(|one| (0..count).map(move |other| (one, other))).filter(|(one, other)| one != other);
        each(pairs.flat_map(|pair| (1..=SIZE).map(move |heads| (kind, pair, heads))), |(_, (one, other), heads)| {
            guest.reset();
            guest.set_up(guest.features());
            guest.registers.write(Register::QueueSel, other);
            guest.registers.write(Register::QueueReady, 0);
            guest.registers.set_up_queue(other, guest.queue(one));
            guest.registers.add_status(status::DRIVER_OK);
            let request = guest.host.request();
            let table = guest.queue(one).write_indirect(TABLES, &linked(&guest.buffers(&request)));
            for head in 0..heads {
                guest.queue(one).write_descriptor(head, table);
                guest.queue(one).publish(head);
                [one, other].into_iter().for_each(|queue| guest.registers.notify(queue));
            }
            guest.host.nudge();
            guest.works_after_reset();
        });
    }
}

#[test]
fn c18_queue_reset_with_any_value_resets_that_queue_or_nothing_and_it_works_again_with_another_size() {
    let values = [0, 1, 2, 3, 0xff, 0x101, 0x8000_0001, u32::MAX];
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let sizes = [2, 4, SIZE];
        each(values.iter().flat_map(|value| sizes.map(|size| (kind, *value, size))), |(_, value, size)| {
            guest.reset();
            guest.bring_up();
            guest.works();
            let queue = kind.prompt_queues()[0];
            guest.registers.write(Register::QueueSel, queue);
            guest.registers.write(Register::QueueReset, value);
            if value != 1 {
                assert_eq!(guest.registers.read(Register::QueueReady), 1);
                guest.works();
                return;
            }
            eventually("the queue is reset", || guest.registers.read(Register::QueueReset) == 0);
            assert_eq!(guest.registers.read(Register::QueueReady), 0);
            let anew = RawQueue::new(guest.memory.clone(), guest.queue(queue).desc_table(), size);
            anew.clear();
            guest.registers.set_up_queue(queue, &anew);
            assert_eq!(guest.registers.read(Register::QueueReady), 1);
            let request = linked(&guest.buffers(&guest.host.request()));
            anew.write_descriptor(0, anew.write_indirect(TABLES, &request));
            anew.publish(0);
            guest.registers.notify(queue);
            eventually("the queue works again", || guest.is_broken() || anew.used_idx() == 1);
            assert!(!guest.is_broken());
        });
        guest.works_after_reset();
        assert!(matches!(guest.outcome(kind.prompt_queues()[0]), Outcome::Back(_)));
    }
}

impl Guest {
    /// The most entries that a queue may have.
    fn queue_max(&self, queue: u32) -> u32 {
        self.registers.write(Register::QueueSel, queue);
        self.registers.read(Register::QueueNumMax)
    }
}
