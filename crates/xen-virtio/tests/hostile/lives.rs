//! Guests that come and go, and guests beside others: rows C13, H01, H02, H03 and H07, as far as devices meet them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use testkit::cases::each;
use testkit::driver::Registers;
use testkit::memory::FakeForeignMemory;

use crate::guest::{BANK, BANK_END, Guest, RAM, RAM_END, SIZE};
use crate::hosts::Kind;
use crate::states::State;

/// Ends a guest's device, as its worker does when the guest is gone.
fn end(guest: Guest) -> FakeForeignMemory {
    let Guest { registers, memory, host, cache, .. } = guest;
    let (ended, end) = mpsc::channel();
    registers.stop().then(move || ended.send(()).unwrap());
    end.recv_timeout(Duration::from_secs(20)).expect("the device ends");
    drop((registers, cache, host));
    testkit::device::eventually("nothing is mapped", || memory.counts().live == 0);
    memory
}

#[test]
fn c13_a_driver_that_resets_and_comes_again_finds_the_same_device_each_time() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let mut mapped = Vec::new();
        each((0..100).map(|round| (kind, round)), |_| {
            guest.works_after_reset();
            guest.reset();
            mapped.push(guest.memory.counts().live);
        });
        assert_eq!(mapped.first(), mapped.last(), "mappings pile up: {mapped:?}");
    }
}

#[test]
fn h01_a_guest_that_ends_in_any_state_and_amid_requests_leaves_nothing_mapped() {
    for kind in Kind::ALL {
        each(State::ALL.iter().flat_map(|state| [0, 1, 5].map(|served| (kind, *state, served))), |input| {
            let (_, state, served) = input;
            let guest = Guest::new(kind);
            guest.bring_up();
            (0..served).for_each(|_| guest.works());
            state.enter(&guest);
            end(guest);
        });
    }
}

#[test]
fn h03_the_next_guest_of_the_same_number_finds_a_device_of_its_own_and_memory_as_it_left_it() {
    for kind in Kind::ALL {
        let mut memory = FakeForeignMemory::new(&[(RAM, RAM_END - RAM), (BANK, BANK_END - BANK)]);
        each((0..10).map(|life| (kind, life)), |_| {
            let guest = Guest::with(kind, memory.clone());
            assert_eq!((guest.registers.status(), guest.memory.counts().live), (0, 0));
            guest.bring_up();
            guest.works();
            memory = end(guest);
        });
    }
}

/// Does what costs a device most, again and again, until told that it is enough: kicks, mappings that are dropped, requests whose
/// end nobody waits for, resets amid them.
fn storm(guest: &Guest, enough: &AtomicBool, rounds: &AtomicUsize) {
    while !enough.load(SeqCst) {
        guest.reset();
        guest.bring_up();
        for _ in 0..20 {
            guest.ask_for(SIZE);
            guest.cache.invalidate();
            (0..).zip(&guest.queues).for_each(|(index, _)| guest.registers.notify(index));
        }
        rounds.fetch_add(1, SeqCst);
    }
}

#[test]
fn h07_of_eight_guests_with_four_devices_each_one_that_storms_keeps_none_of_the_others_waiting_for_ever() {
    const KINDS: [Kind; 4] = [Kind::Disk, Kind::Net, Kind::Console, Kind::Rng];
    let (enough, rounds, all_storm) = (AtomicBool::new(false), AtomicUsize::new(0), Barrier::new(KINDS.len() + 1));
    thread::scope(|scope| {
        for kind in KINDS {
            let (enough, rounds, all_storm) = (&enough, &rounds, &all_storm);
            scope.spawn(move || {
                let guest = Guest::new(kind);
                all_storm.wait();
                storm(&guest, enough, rounds);
            });
        }
        all_storm.wait();
        let honest = [KINDS; 7].into_iter().flatten().map(|kind| {
            scope.spawn(move || {
                let guest = Guest::new(kind);
                guest.bring_up();
                each((0..50).map(|request| (kind, request)), |_| guest.works());
            })
        });
        let honest: Vec<_> = honest.collect();
        let ends: Vec<_> = honest.into_iter().map(thread::ScopedJoinHandle::join).collect();
        enough.store(true, SeqCst);
        assert!(ends.iter().all(Result::is_ok), "a device that an honest guest uses has failed it");
    });
    assert!(rounds.load(SeqCst) > 0, "nobody stormed");
}
