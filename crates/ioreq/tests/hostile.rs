//! Rows A01 to A21 of the table of hostile inputs, those that this crate meets.
//!
//! Beside what each asserts, `FakeXen` checks in all of them that no state went backwards, no port
//! changed, no answer had bits above its width, and nobody waited in vain.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{BASE, DEFERS, LEN, Machine, PANICS, eventually, window};
use io_bus::Space;
use ioreq::{Buffering, IoreqServer, ServerError, ServerId};
use rustix::io::Errno;
use testkit::xen::{DmOp, FakeXen, Fault, Flags, Ioreq, STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESPONSE};

const READ: Flags = Flags { read: true, down: false, pointer: false };
const WRITE: Flags = Flags { read: false, down: false, pointer: false };
const POINTER: u64 = 0x4000_0000;

#[test]
fn a01_an_invalidation_may_be_the_first_request_and_is_answered() {
    let machine = Machine::new(1);
    machine.vcpu(0).invalidate().unwrap();
    assert_eq!(machine.ram.invalidations.load(Ordering::Relaxed), 1);
    machine.vcpu(0).write32(BASE, 7);
    assert_eq!(machine.vcpu(0).read32(BASE), 7);
}

#[test]
fn a01_every_enabled_server_answers_an_invalidation_and_a_disabled_one_is_not_asked() {
    let xen = FakeXen::new(1);
    let (first, second) =
        (Machine::on(Arc::clone(&xen), Buffering::Off), Machine::on(Arc::clone(&xen), Buffering::Off));
    let _not_enabled = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    xen.vcpu(0).invalidate().unwrap();
    assert_eq!(first.pump.counts().invalidations, 1);
    assert_eq!(second.pump.counts().invalidations, 1);
}

#[test]
fn a02_a_storm_of_invalidations_leaves_other_vcpus_their_registers() {
    let machine = Machine::new(2);
    let calm = Arc::new(AtomicBool::new(false));
    let storm = thread::spawn({
        let (vcpu, calm) = (machine.vcpu(1), Arc::clone(&calm));
        move || {
            while !calm.load(Ordering::Relaxed) {
                vcpu.invalidate().unwrap()
            }
        }
    });
    for value in 0..200 {
        machine.vcpu(0).write32(BASE + 4, value);
        assert_eq!(machine.vcpu(0).read32(BASE + 4), value);
    }
    calm.store(true, Ordering::Relaxed);
    storm.join().unwrap();
    assert_eq!(machine.pump.counts().invalidations, machine.ram.invalidations.load(Ordering::Relaxed));
}

#[test]
fn a04_events_without_a_request_are_ignored_and_their_port_fires_again() {
    let machine = Machine::new(1);
    let slot = machine.xen.slot(machine.server.id(), 0);
    for state in [STATE_NONE, STATE_INPROCESS, STATE_RESPONSE] {
        slot.put(Ioreq { data: 0x77, ..Ioreq::default() }, state);
        let before = machine.pump.counts().spurious_wakes;
        slot.signal();
        eventually("the pump looked", || machine.pump.counts().spurious_wakes > before);
        assert_eq!(slot.get(), (state, 0x77), "the slot is not ours to write");
    }
    slot.put(Ioreq::default(), STATE_NONE);
    machine.vcpu(0).write32(BASE, 1);
    assert_eq!(machine.pump.counts().requests, 1);
}

#[test]
fn a05_one_event_serves_every_ready_slot() {
    let machine = Machine::new(4);
    let slot = |vcpu| machine.xen.slot(machine.server.id(), vcpu);
    for vcpu in 0..4 {
        slot(vcpu).put(Ioreq { addr: BASE, ..Ioreq::default() }, STATE_READY);
    }
    slot(2).signal();
    for vcpu in 0..4 {
        assert_eq!(slot(vcpu).take_answer(), 0);
    }
}

#[test]
fn a05_a_request_from_before_the_pump_was_there_is_served() {
    let xen = FakeXen::new(2);
    let first = Machine::on(Arc::clone(&xen), Buffering::Off);
    let id = first.server.id();
    first.die();
    let early = thread::spawn({
        let vcpu = xen.vcpu(1);
        move || vcpu.write32(BASE, 5)
    });
    eventually("the request waits", || xen.slot(id, 1).get().0 == STATE_READY);
    let second = Machine::attach(Arc::clone(&xen), id);
    early.join().unwrap();
    assert_eq!(second.vcpu(0).read32(BASE), 5);
}

#[test]
fn a06_a_size_that_no_register_has_reads_all_ones_and_does_nothing() {
    let machine = Machine::new(1);
    for size in [0, 3, 5, 16, 1 << 31, u32::MAX] {
        let read = Ioreq { addr: BASE, size, ..Ioreq::default() };
        assert_eq!(machine.vcpu(0).send(machine.server.id(), read), Ok(u64::MAX));
        machine.vcpu(0).send(machine.server.id(), Ioreq { flags: WRITE, ..read }).unwrap();
    }
    assert_eq!(machine.pump.counts().bad_requests, 12);
    assert_eq!(machine.device.accesses.load(Ordering::Relaxed), 0);
}

#[test]
fn a06_an_address_outside_the_window_or_across_its_end_reads_all_ones() {
    let machine = Machine::new(1);
    for addr in [0, BASE - 1, BASE - 2, BASE + LEN - 1, BASE + LEN, u64::MAX, u64::MAX - 3] {
        let read = Ioreq { addr, ..Ioreq::default() };
        assert_eq!(machine.vcpu(0).send(machine.server.id(), read), Ok(0xffff_ffff), "at {addr:#x}");
        machine.vcpu(0).send(machine.server.id(), Ioreq { flags: WRITE, ..read }).unwrap();
    }
    assert_eq!(machine.pump.counts().unclaimed, 14);
    assert_eq!(machine.device.accesses.load(Ordering::Relaxed), 0);
}

#[test]
fn a06_an_access_that_xen_does_not_forward_aborts_in_the_guest() {
    let machine = Machine::new(1);
    assert_eq!(machine.vcpu(0).read(Space::Mmio, BASE + LEN - 2, 4), Err(Fault::DataAbort));
    assert_eq!(machine.vcpu(0).read(Space::PortIo, BASE, 4), Err(Fault::DataAbort));
}

#[test]
fn a07_a_count_of_none_or_far_too_many_does_nothing_at_once() {
    let machine = Machine::new(1);
    for count in [0, 4097, u32::MAX] {
        let read = Ioreq { addr: BASE, count, flags: READ, ..Ioreq::default() };
        assert_eq!(machine.vcpu(0).send(machine.server.id(), read), Ok(0xffff_ffff));
    }
    assert_eq!(machine.pump.counts().bad_requests, 3);
    assert_eq!(machine.device.accesses.load(Ordering::Relaxed), 0);
}

#[test]
fn a07_a_string_down_past_address_zero_or_out_of_the_window_wraps_harmlessly() {
    let machine = Machine::new(1);
    let down = Flags { down: true, ..WRITE };
    for addr in [4, BASE + 4] {
        let write = Ioreq { addr, count: 4096, size: 8, data: 1, flags: down, ..Ioreq::default() };
        machine.vcpu(0).send(machine.server.id(), write).unwrap();
    }
    assert_eq!(machine.device.accesses.load(Ordering::Relaxed), 1, "the one item inside");
}

#[test]
fn a07_operands_in_memory_move_both_ways() {
    let machine = Machine::new(1);
    let by_pointer = |read| Ioreq {
        addr: BASE,
        data: POINTER,
        count: 2,
        flags: Flags { read, pointer: true, down: false },
        ..Ioreq::default()
    };
    machine.vcpu(0).write32(BASE, 0x1111_2222);
    machine.vcpu(0).write32(BASE + 4, 0x3333_4444);
    machine.vcpu(0).send(machine.server.id(), by_pointer(true)).unwrap();
    machine.vcpu(0).write(Space::Mmio, BASE, 8, 0).unwrap();
    machine.vcpu(0).send(machine.server.id(), by_pointer(false)).unwrap();
    assert_eq!(machine.vcpu(0).read(Space::Mmio, BASE, 8), Ok(0x3333_4444_1111_2222));
}

#[test]
fn a07_an_operand_in_a_hole_or_in_the_window_itself_ends_the_request() {
    let machine = Machine::new(1);
    for data in [BASE, POINTER + 0x1000, u64::MAX - 2] {
        for read in [true, false] {
            let flags = Flags { read, pointer: true, down: false };
            let request = Ioreq { addr: BASE, data, count: 4096, flags, ..Ioreq::default() };
            machine.vcpu(0).send(machine.server.id(), request).unwrap();
        }
    }
    assert_eq!(machine.pump.counts().bad_requests, 6);
    assert!(machine.device.accesses.load(Ordering::Relaxed) <= 3, "it stops at the first item");
}

#[test]
fn a08_every_type_there_can_be_is_answered() {
    let machine = Machine::new(1);
    for kind in 0..=255 {
        let read = Ioreq { addr: 0x10, kind, ..Ioreq::default() };
        assert_eq!(machine.vcpu(0).send(machine.server.id(), read), Ok(0xffff_ffff), "type {kind}");
    }
    let counts = machine.pump.counts();
    assert_eq!((counts.requests, counts.bad_requests), (256, 251), "all but PIO, COPY, TIMEOFFSET, INVALIDATE, PCI");
}

#[test]
fn a09_bits_above_the_width_get_neither_in_nor_out() {
    // `Vcpu::write` leaves rubbish above the width, as Xen before 4.18 does, and a read's answer is checked.
    let machine = Machine::new(1);
    machine.vcpu(0).write(Space::Mmio, BASE, 8, 0x1122_3344_5566_7788).unwrap();
    machine.vcpu(0).write(Space::Mmio, BASE, 1, 0xff).unwrap();
    assert_eq!(machine.vcpu(0).read(Space::Mmio, BASE, 8), Ok(0x1122_3344_5566_77ff));
    assert_eq!(machine.vcpu(0).read(Space::Mmio, BASE, 2), Ok(0x77ff));
}

#[test]
fn a10_a_slot_that_changes_all_the_time_is_read_once() {
    let machine = Machine::new(1);
    let slot = machine.xen.slot(machine.server.id(), 0);
    let sane = Ioreq { addr: BASE, data: u64::MAX, ..Ioreq::default() };
    let insane = Ioreq { addr: u64::MAX, size: 1 << 31, count: u32::MAX, kind: 77, ..sane };
    let calm = AtomicBool::new(false);
    thread::scope(|scope| {
        let scribbler = scope.spawn(|| {
            while !calm.load(Ordering::Relaxed) {
                slot.scribble(insane);
                slot.scribble(sane);
            }
        });
        for _ in 0..300 {
            slot.put(sane, STATE_READY);
            slot.signal();
            slot.take_answer();
        }
        calm.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
    });
    let counts = machine.pump.counts();
    assert_eq!((counts.requests, counts.reads + counts.bad_requests, counts.panics), (300, 300, 0));
}

#[test]
fn a10_a_slot_that_changes_while_held_changes_nothing() {
    let machine = Machine::new(2);
    let writer = machine.write_from(0, DEFERS, 1);
    let held = machine.device.take_deferred(1);
    let slot = machine.xen.slot(machine.server.id(), 0);
    slot.scribble(Ioreq { addr: BASE, data: 0xbad, kind: 8, ..Ioreq::default() });
    slot.signal();
    machine.vcpu(1).write32(BASE, 1);
    drop(held);
    writer.join().unwrap();
    let counts = machine.pump.counts();
    assert_eq!((counts.requests, counts.invalidations), (2, 0));
}

#[test]
fn a11_a_slot_put_back_to_ready_while_held_is_neither_taken_twice_nor_answered() {
    let machine = Machine::new(2);
    let slot = machine.xen.slot(machine.server.id(), 0);
    slot.put(Ioreq { addr: DEFERS, flags: WRITE, ..Ioreq::default() }, STATE_READY);
    slot.signal();
    let held = machine.device.take_deferred(1);
    slot.put(Ioreq { addr: BASE, data: 5, flags: WRITE, ..Ioreq::default() }, STATE_READY);
    slot.signal();
    machine.vcpu(1).write32(BASE, 1);
    assert_eq!(slot.get().0, STATE_READY);
    drop(held);
    // Free now, so what is there is a request like any other.
    slot.signal();
    slot.take_answer();
    assert_eq!(machine.vcpu(1).read32(BASE), 5);
}

#[test]
fn a13_lost_events_lose_no_request() {
    let machine = Machine::new(3);
    machine.channels.overflow();
    eventually("it was noticed", || machine.pump.counts().overflows == 1);
    // More vCPUs at a time than the kernel's queue holds.
    machine.channels.set_queue_len(1);
    let writers: Vec<_> = (0..3)
        .map(|index| {
            let vcpu = machine.vcpu(index);
            thread::spawn(move || (0..200).for_each(|value| vcpu.write32(BASE + 4 * index as u64, value)))
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(machine.pump.counts().writes, 600);
}

#[test]
fn a14_a_wait_that_fails_is_survived() {
    let machine = Machine::new(1);
    for errno in [Errno::INTR, Errno::AGAIN, Errno::IO] {
        machine.channels.fail_next_wait(errno);
        machine.vcpu(0).write32(BASE, 1);
    }
    assert_eq!(machine.pump.counts().writes, 3);
}

#[test]
fn a15_a_refused_signal_is_counted_and_the_next_request_served() {
    let machine = Machine::new(1);
    for errno in [Errno::NOTCONN, Errno::SRCH, Errno::INVAL] {
        machine.channels.fail_next_notify(errno);
        machine.vcpu(0).write32(BASE, 1);
    }
    machine.vcpu(0).write32(BASE, 1);
    let counts = machine.pump.counts();
    assert_eq!((counts.writes, counts.failed_signals), (4, 3));
}

#[test]
fn a15_a_guest_that_dies_in_an_access_ends_in_order() {
    let machine = Machine::new(1);
    let vcpu = machine.vcpu(0);
    let access = thread::spawn(move || vcpu.write(Space::Mmio, DEFERS, 4, 1));
    let held = machine.device.take_deferred(1);
    machine.xen.kill_guest();
    assert_eq!(access.join().unwrap(), Err(Fault::Destroyed));
    drop(held);
    assert_eq!(machine.pump.counts().failed_signals, 1);
    assert!(!machine.xen.is_enabled(ServerId(7)));
    drop(machine);
}

#[test]
fn a16_a_refusal_keeps_its_number_and_leaves_no_server() {
    for (op, errno) in [
        (DmOp::Vcpus, Errno::SRCH),
        (DmOp::CreateServer, Errno::PERM),
        (DmOp::CreateServer, Errno::NOSPC),
        (DmOp::MapPage, Errno::NOMEM),
    ] {
        let xen = FakeXen::new(1);
        xen.fail_next(op, errno);
        let Err(ServerError::Xen { source, .. }) = IoreqServer::create(xen.hypervisor(), Buffering::Off) else {
            panic!("{op:?} fails")
        };
        assert_eq!(source.errno(), errno);
        assert_eq!(xen.servers(), []);
    }
}

#[test]
fn a16_the_ninth_server_and_an_overlapping_window_are_refused() {
    let xen = FakeXen::new(1);
    let servers: Vec<_> = (0..8).map(|_| IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap()).collect();
    let ninth = IoreqServer::create(xen.hypervisor(), Buffering::Off).err();
    assert!(matches!(ninth, Some(ServerError::Xen { source, .. }) if source.errno() == Errno::NOSPC));
    let _window = servers[0].map(window(BASE)).unwrap();
    let overlapping = servers[0].map(window(BASE + LEN - 1)).err();
    assert!(matches!(overlapping, Some(ServerError::Xen { source, .. }) if source.errno() == Errno::EXIST));
}

#[test]
fn a18_as_many_vcpus_are_served_as_a_page_has_slots_and_no_more() {
    let machine = Machine::new(128);
    machine.vcpu(127).write32(BASE, 127);
    assert_eq!(machine.vcpu(64).read32(BASE), 127);
    let xen = FakeXen::new(129);
    let refused = IoreqServer::create(xen.hypervisor(), Buffering::Off).err();
    assert!(matches!(refused, Some(ServerError::TooManyVcpus(129))));
    assert_eq!(xen.servers(), []);
}

#[test]
fn a19_every_vcpu_the_guest_may_bring_up_is_bound_from_the_start() {
    let machine = Machine::new(32);
    assert_eq!(machine.channels.bound(), 32);
    machine.vcpu(31).write32(BASE, 1);
}

#[test]
fn a20_vcpus_do_not_hurt_each_other_at_one_device() {
    let machine = Machine::new(4);
    let vcpus: Vec<_> = (0..4u32)
        .map(|index| {
            let vcpu = machine.vcpu(index as usize);
            thread::spawn(move || {
                let register = BASE + 4 * u64::from(index);
                for value in 0..200 {
                    vcpu.write32(register, value << 8 | index);
                    vcpu.invalidate().unwrap();
                    assert_eq!(vcpu.read32(register), value << 8 | index);
                }
            })
        })
        .collect();
    vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
    let counts = machine.pump.counts();
    assert_eq!((counts.writes, counts.reads, counts.invalidations), (800, 800, 800));
}

#[test]
fn a21_a_storm_of_writes_from_all_vcpus_but_one_lets_that_one_through() {
    let machine = Machine::new(4);
    let calm = Arc::new(AtomicBool::new(false));
    let storm: Vec<_> = (1..4)
        .map(|index| {
            let (vcpu, calm) = (machine.vcpu(index), Arc::clone(&calm));
            thread::spawn(move || {
                while !calm.load(Ordering::Relaxed) {
                    vcpu.write32(BASE + 0x50, 0)
                }
            })
        })
        .collect();
    for value in 0..200 {
        machine.vcpu(0).write32(BASE, value);
    }
    calm.store(true, Ordering::Relaxed);
    storm.into_iter().for_each(|vcpu| vcpu.join().unwrap());
}

#[test]
fn a_device_that_panics_costs_only_the_access() {
    let machine = Machine::new(1);
    assert_eq!(machine.vcpu(0).read32(PANICS), u32::MAX);
    machine.vcpu(0).write32(PANICS, 1);
    machine.vcpu(0).write32(BASE, 3);
    assert_eq!(machine.vcpu(0).read32(BASE), 3);
    assert_eq!(machine.pump.counts().panics, 2);
}
