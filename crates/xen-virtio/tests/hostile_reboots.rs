//! Row H02 of the table of hostile inputs: guests that are rebooted and crash again and again. By itself, for what the whole
//! process holds is counted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    dead_code,
    unreachable_pub,
    reason = "a test reports by panicking, and does not use all that it shares"
)]

#[path = "hostile/guest.rs"]
mod guest;
#[path = "hostile/hosts.rs"]
mod hosts;

use std::fs;

use testkit::cases::each;
use testkit::device::eventually;
use testkit::memory::FakeForeignMemory;

use guest::{BANK, BANK_END, Guest, RAM, RAM_END, SIZE};
use hosts::Kind;

/// What this process holds of the host: descriptors and threads.
fn held() -> (usize, usize) {
    let count = |what| fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    (count("fd"), count("task"))
}

/// A guest boots, uses its device, and ends amid requests, without a word to the device.
fn live_and_crash(kind: Kind, memory: &FakeForeignMemory) {
    let guest = Guest::with(kind, memory.clone());
    guest.bring_up();
    guest.works();
    guest.ask_for(SIZE);
    drop(guest);
    eventually("nothing is mapped", || memory.counts().live == 0);
}

#[test]
fn h02_a_hundred_lives_of_each_kind_of_device_leave_no_descriptor_thread_or_mapping() {
    let memory = FakeForeignMemory::new(&[(RAM, RAM_END - RAM), (BANK, BANK_END - BANK)]);
    // What is made once is made now.
    Kind::ALL.into_iter().for_each(|kind| live_and_crash(kind, &memory));
    let mut before = held();
    eventually("threads that end have ended", || {
        let last = std::mem::replace(&mut before, held());
        last == before
    });
    for kind in Kind::ALL {
        each((0..100).map(|life| (kind, life)), |_| live_and_crash(kind, &memory));
    }
    eventually("all is given back", || {
        let (descriptors, threads) = held();
        descriptors <= before.0 && threads <= before.1
    });
}
