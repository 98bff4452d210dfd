//! What devices are given as memory, and what becomes of it: rows B01 to B05, B13 and B14.

use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use testkit::cases::each;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Registers};
use testkit::memory::Failure;

use crate::guest::{BANK, BANK_END, Guest, RAM, RAM_END, READABLE, SIZE, TABLES, WRITABLE, linked};
use crate::hosts::Kind;

const PAGE: u64 = 4096;

/// Whether a driver may name this as a buffer.
fn is_memory(address: u64, len: u32) -> bool {
    let end = u128::from(address) + u128::from(len);
    let within = |bank: (u64, u64)| bank.0 <= address && end <= u128::from(bank.1);
    len == 0 || within((RAM, RAM_END)) || within((BANK, BANK_END))
}

/// Offers one buffer of `queue`; the device breaks if it is none, and works after a reset whatever it is.
fn offer_and_see(guest: &Guest, queue: u32, buffer: Descriptor) {
    guest.reset();
    guest.bring_up();
    guest.queue(queue).write_chain(0, &[buffer]);
    guest.queue(queue).publish(0);
    guest.registers.notify(queue);
    if guest.kind.receive_queues().contains(&queue) {
        guest.host.nudge();
    } else if !guest.kind.may_be_silent() {
        guest.outcome(queue);
    }
    if !is_memory(buffer.addr, buffer.len) {
        guest.expect_broken("a buffer that is none is found out");
    }
    guest.works_after_reset();
}

/// Both kinds of buffer, in each queue of a kind that it takes chains from.
fn each_buffer(inputs: impl IntoIterator<Item = (u64, u32)> + Clone) {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queues: Vec<_> = kind.prompt_queues().iter().chain(kind.receive_queues()).copied().collect();
        let inputs = queues.iter().flat_map(|queue| inputs.clone().into_iter().map(move |range| (kind, *queue, range)));
        each(inputs, |(_, queue, (address, len))| {
            if !kind.receive_queues().contains(&queue) {
                offer_and_see(&guest, queue, Descriptor::readable(address, len));
            }
            offer_and_see(&guest, queue, Descriptor::writable(address, len));
        });
    }
}

#[test]
fn b01_buffers_that_are_no_memory_break_any_device_until_reset() {
    // Below and between banks, a device's own registers, the grant table's region, and higher than any guest's memory.
    let places = [0, 1, 0x200_0000, 0x200_01fc, 0x200_0200, 0x3800_0000, RAM - PAGE, RAM_END, BANK - 1, BANK_END];
    let far = [1 << 39, 1 << 40, 1 << 47, 1 << 48, 1 << 52, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 63 | 8 << 12 | 4];
    let inputs: Vec<_> = places.into_iter().chain(far).flat_map(|at| [1, 512, 0x1_0000].map(|len| (at, len))).collect();
    each_buffer(inputs);
}

#[test]
fn b02_buffers_that_wrap_or_are_absurdly_long_break_any_device_until_reset() {
    let ends = [u64::MAX, u64::MAX - 1, u64::MAX - 511, u64::MAX - 4095, u64::MAX - 0xffff, !0xfff];
    let wrapping = ends.into_iter().flat_map(|at| [2, 4096, 0x1_0000, u32::MAX].map(|len| (at, len)));
    let long = [RAM, READABLE, BANK, (1 << 48) - 1, (1 << 52) - 1];
    let long = long.into_iter().flat_map(|at| [0x8000_0000, u32::MAX - 4095, u32::MAX].map(|len| (at, len)));
    let inputs: Vec<_> = wrapping.chain(long).collect();
    each_buffer(inputs);
}

#[test]
fn b03_buffers_that_end_or_begin_in_a_hole_break_any_device_until_reset() {
    let mut inputs = Vec::new();
    for edge in [RAM_END, BANK_END] {
        inputs.extend([1, 2, 15, 4095, 4096].map(|inside: u32| (edge - u64::from(inside), inside + 1)));
        inputs.extend([1, 512, 4097].map(|inside| (edge - inside, 0x8000)));
    }
    for edge in [RAM, BANK] {
        inputs.extend([(edge - 1, 2), (edge - 4096, 8192), (edge - 16, 17)]);
    }
    // From one bank over the hole into the other.
    inputs.push((RAM_END - PAGE, (BANK - RAM_END + 2 * PAGE) as u32));
    each_buffer(inputs);
}

#[test]
fn b04_a_page_that_leaves_the_guest_under_a_device_costs_it_that_device_at_most() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let pages = [RAM, RAM + 0x1000, READABLE, WRITABLE, TABLES];
        each(pages.iter().flat_map(|page| [false, true].map(|served_before| (kind, *page, served_before))), |input| {
            let (_, page, served_before) = input;
            guest.reset();
            guest.bring_up();
            if served_before {
                guest.works();
            }
            let request = guest.host.request();
            let table = linked(&guest.buffers(&request));
            let queue = guest.queue(request.queue);
            queue.write_chain(0, &[queue.write_indirect(TABLES, &table)]);
            queue.publish(0);
            let used = queue.used_idx();
            guest.memory.balloon_out(page, 1);
            guest.cache.invalidate();
            guest.registers.notify(request.queue);
            // Where the page is one that the device needs it finds that out, at the latest when it is reset.
            if page == RAM + 0x1000 * u64::from(request.queue) || page == TABLES {
                guest.expect_broken("what is needed is gone");
            }
            guest.registers.reset();
            guest.memory.balloon_in(page, 1);
            guest.cache.invalidate();
            assert!(guest.queue(request.queue).used_idx().wrapping_sub(used) <= 1 || page < READABLE);
            guest.works_after_reset();
        });
    }
}

#[test]
fn b14_whichever_mapping_fails_and_however_the_device_serves_or_breaks_and_works_after_a_reset() {
    let errnos = [Errno::NOMEM, Errno::FAULT, Errno::NOENT].map(|errno| Failure::Errno(errno.raw_os_error()));
    let failures = [&[Failure::Busy, Failure::Holes][..], &errnos].concat();
    for kind in Kind::ALL {
        let inputs = (1..=8).flat_map(|nth| failures.iter().map(move |failure| (kind, nth, *failure)));
        each(inputs, |(_, nth, failure)| {
            let guest = Guest::new(kind);
            guest.memory.fail_map(nth, failure);
            guest.bring_up();
            let request = guest.host.request();
            let table = linked(&guest.buffers(&request));
            let queue = guest.queue(request.queue);
            queue.write_chain(0, &[queue.write_indirect(TABLES, &table)]);
            queue.publish(0);
            guest.registers.notify(request.queue);
            guest.outcome(request.queue);
            // It may not have come to so many calls.
            guest.memory.fail_map(u64::MAX / 2, failure);
            guest.works_after_reset();
        });
    }
}

#[test]
fn b13_after_the_end_of_any_device_whatever_it_was_doing_nothing_of_its_guest_is_mapped() {
    for kind in Kind::ALL {
        each((0..=SIZE).flat_map(|requests| [false, true].map(|broken| (kind, requests, broken))), |input| {
            let (_, requests, broken) = input;
            let guest = Guest::new(kind);
            guest.bring_up();
            for head in 0..requests {
                let request = guest.host.request();
                let table = linked(&guest.buffers(&request));
                let queue = guest.queue(request.queue);
                let referring = queue.write_indirect(TABLES, &table);
                queue.write_descriptor(head, referring);
                queue.publish(head);
                guest.registers.notify(request.queue);
            }
            if broken {
                let queue = kind.prompt_queues()[0];
                guest.queue(queue).set_avail_idx(0x8000);
                guest.registers.notify(queue);
            }
            let Guest { registers, cache, host, memory, .. } = guest;
            let (ended, end) = mpsc::channel();
            registers.stop().then(move || ended.send(()).unwrap());
            end.recv_timeout(Duration::from_secs(20)).expect("the device ends");
            drop((registers, cache, host));
            eventually("all is unmapped", || memory.counts().live == 0);
        });
    }
}
