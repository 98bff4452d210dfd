//! Requests of every make, against what each of them may do: rows A06 to A10, A12, A16, A22 and A23 of the table of hostile
//! inputs. `hostile.rs` has those rows one by one, and the others.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::{BASE, DEFERS, LEN, Machine, eventually};
use io_bus::Space;
use ioreq::{Buffering, IoreqServer};
use rustix::io::Errno;
use testkit::cases::each;
use testkit::xen::{DmOp, FakeXen, Fault, Flags, Ioreq, STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESPONSE};

/// The one page of memory that the guest has.
const RAM: u64 = 0x4000_0000;
const RAM_END: u64 = RAM + 0x1000;

/// What each field is tried with. No address is that of a register with a will of its own.
const TYPES: [u8; 10] = [0, 1, 2, 3, 6, 7, 8, 9, 0x81, 255];
const SIZES: [u32; 9] = [0, 1, 2, 3, 4, 8, 16, 1 << 31, u32::MAX];
const COUNTS: [u32; 6] = [0, 1, 2, 4096, 4097, u32::MAX];
const ADDRESSES: [u64; 9] =
    [0, BASE - 1, BASE, BASE + 0x20, BASE + 0x181, BASE + LEN - 2, BASE + LEN, 1 << 63, u64::MAX - 3];

fn all_flags() -> impl Iterator<Item = Flags> {
    (0..8).map(|bits| Flags { read: bits & 1 != 0, down: bits & 2 != 0, pointer: bits & 4 != 0 })
}

fn is_access(request: &Ioreq) -> bool {
    request.kind <= 2 && matches!(request.size, 1 | 2 | 4 | 8) && (1..=4096).contains(&request.count)
}

fn mask(size: u32) -> u64 {
    if matches!(size, 1 | 2 | 4) { (1 << (8 * size)) - 1 } else { u64::MAX }
}

/// How often the device is to be accessed for `request`, and whether all of it can be done.
fn accesses(request: &Ioreq) -> (u64, bool) {
    if !is_access(request) {
        return (0, false);
    }
    let size = u64::from(request.size);
    let mut reached = 0;
    for index in 0..u64::from(request.count) {
        let stepped = |base: u64| {
            let distance = index * size;
            if request.flags.down { base.wrapping_sub(distance) } else { base.wrapping_add(distance) }
        };
        let addr = if request.kind == 1 { stepped(request.addr) } else { request.addr };
        let fits = |start: u64, end: u64, at: u64| at >= start && at.checked_add(size).is_some_and(|last| last <= end);
        let operand_is_memory = !request.flags.pointer || fits(RAM, RAM_END, stepped(request.data));
        let is_ours = request.kind == 1 && fits(BASE, BASE + LEN, addr);
        // A read comes before its operand is stored, a write after it is fetched.
        reached += u64::from(is_ours && (request.flags.read || operand_is_memory));
        if !operand_is_memory {
            return (reached, false);
        }
    }
    (reached, true)
}

/// Sends each request, and sees that it does what it may, that its answer has its width, and that the next one is served.
fn each_does_what_it_may(requests: impl Iterator<Item = Ioreq>) {
    let machine = Machine::new(1);
    let (vcpu, id) = (machine.vcpu(0), machine.server.id());
    each(requests, |request| {
        let (before, bad) = (machine.device.accesses.load(Relaxed), machine.pump.counts().bad_requests);
        let answer = vcpu.send(id, request).unwrap();
        let (reached, is_whole) = accesses(&request);
        assert_eq!(machine.device.accesses.load(Relaxed) - before, reached);
        if request.flags.read && !request.flags.pointer {
            assert_eq!(answer & !mask(request.size), 0, "bits above the width: {answer:#x}");
            if reached == 0 {
                assert_eq!(answer, mask(request.size), "nothing is all ones");
            }
        }
        let known = matches!(request.kind, 7 | 8);
        assert_eq!(machine.pump.counts().bad_requests - bad, u64::from(!is_whole && !known));
    });
    machine.vcpu(0).write32(BASE, 7);
    assert_eq!(machine.vcpu(0).read32(BASE), 7);
    assert_eq!(machine.pump.counts().panics, 0);
}

#[test]
fn a06_a07_a08_requests_of_every_type_size_count_direction_and_address_do_what_they_may() {
    let values = TYPES.into_iter().flat_map(|kind| SIZES.map(|size| (kind, size)));
    let values = values.flat_map(|(kind, size)| COUNTS.map(|count| (kind, size, count)));
    // Of the long ones, those that are accesses take their time: a few addresses will do.
    let values = values.flat_map(|(kind, size, count)| {
        let few = kind <= 2 && count == 4096;
        ADDRESSES
            .into_iter()
            .filter(move |addr| !few || [0, BASE, 1 << 63].contains(addr))
            .map(move |addr| (kind, size, count, addr))
    });
    each_does_what_it_may(values.flat_map(|(kind, size, count, addr)| {
        [true, false].map(|read| {
            // Upwards from the window's start there are registers with a will of their own.
            let flags = Flags { read, down: count > 2, pointer: false };
            Ioreq { kind, size, count, addr, data: 0x1122_3344_5566_7788, flags }
        })
    }));
}

#[test]
fn a07_operands_anywhere_are_moved_as_far_as_they_are_memory() {
    let pointers = [0, BASE, BASE + 4, RAM - 1, RAM, RAM + 8, RAM_END - 8, RAM_END - 4, RAM_END - 1, RAM_END, 1 << 63];
    let pointers = pointers.into_iter().chain([u64::MAX - 7, u64::MAX - 1, u64::MAX]);
    let values = pointers.flat_map(|data| [1, 2, 4, 8].map(|size| (data, size)));
    let values = values.flat_map(|(data, size)| [1, 2, 3, 8].map(|count| (data, size, count)));
    let values = values.flat_map(|(data, size, count)| {
        [BASE, BASE + 0x100, BASE + LEN - 8, BASE + LEN, 0].map(|addr| (data, size, count, addr))
    });
    each_does_what_it_may(values.flat_map(|(data, size, count, addr)| {
        // From its start down, or from its end up, an access of so few items comes to no register with a will of its own.
        all_flags().filter(|flags| flags.pointer).map(move |flags| Ioreq { kind: 1, size, count, addr, data, flags })
    }));
}

#[test]
fn a09_no_register_takes_or_gives_more_than_the_width_of_an_access() {
    let machine = Machine::new(1);
    let patterns = [0, 1, 0x80, 0xff, 0x8000, 0xffff_ffff, 0x8000_0000_0000_0000, 0x1122_3344_5566_7788, u64::MAX];
    let values = (0..8).flat_map(|offset| [1, 2, 4, 8].map(|size| (offset, size)));
    each(values.flat_map(|(offset, size)| patterns.map(|value| (offset, size, value))), |(offset, size, value)| {
        let (vcpu, at) = (machine.vcpu(0), BASE + 0x100);
        vcpu.write(Space::Mmio, at, 8, 0x5555_5555_5555_5555).unwrap();
        vcpu.write(Space::Mmio, at + 8, 8, 0x5555_5555_5555_5555).unwrap();
        vcpu.write(Space::Mmio, at + offset, size, value).unwrap();
        let whole = u128::from(vcpu.read(Space::Mmio, at, 8).unwrap())
            | u128::from(vcpu.read(Space::Mmio, at + 8, 8).unwrap()) << 64;
        let carried = u128::from(value & (u64::MAX >> (64 - 8 * size)));
        let hole = !(u128::from(u64::MAX >> (64 - 8 * size)) << (8 * offset));
        let around = 0x5555_5555_5555_5555_5555_5555_5555_5555 & hole;
        assert_eq!(whole, around | carried << (8 * offset));
        assert_eq!(vcpu.read(Space::Mmio, at + offset, size), Ok(value & (u64::MAX >> (64 - 8 * size))));
    });
}

#[test]
fn a12_what_stands_in_the_slot_as_event_channel_later_is_not_signalled() {
    let machine = Machine::new(2);
    let slot = machine.xen.slot(machine.server.id(), 0);
    each([0, 1, 11, 12, 13, 1 << 16, u32::MAX], |port| {
        let writer = machine.write_from(0, DEFERS, 1);
        let held = machine.device.take_deferred(1);
        slot.set_port(port);
        drop(held);
        // The fake would say so if a channel were signalled that is not this slot's.
        writer.join().unwrap();
        slot.restore_port();
        machine.vcpu(1).write32(BASE, port);
        assert_eq!(machine.vcpu(0).read32(BASE), port);
    });
}

#[test]
fn a16_whatever_call_fails_and_however_the_error_has_its_number_and_no_server_is_left() {
    let ops = [DmOp::Vcpus, DmOp::CreateServer, DmOp::MapPage];
    let errnos = [Errno::PERM, Errno::SRCH, Errno::AGAIN, Errno::INTR, Errno::NOSPC, Errno::EXIST, Errno::NOMEM];
    let errnos = errnos.into_iter().chain([Errno::INVAL, Errno::FAULT, Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOENT]);
    each(errnos.flat_map(|errno| ops.map(|op| (op, errno))), |(op, errno)| {
        let xen = FakeXen::new(1);
        xen.fail_next(op, errno);
        let refused = IoreqServer::create(xen.hypervisor(), Buffering::Off).err();
        assert!(matches!(refused, Some(ioreq::ServerError::Xen { source, .. }) if source.errno() == errno));
        assert_eq!(xen.servers(), []);
        let machine = Machine::on(xen, Buffering::Off);
        machine.vcpu(0).write32(BASE, 1);
    });
}

#[test]
fn a22_accesses_of_any_width_and_alignment_reach_the_device_whole_or_abort_in_the_guest() {
    // Instructions that Xen takes apart or does not decode come as accesses like these or not at all.
    let machine = Machine::new(1);
    let starts = [BASE + 0x100, BASE + LEN - 16, BASE - 16];
    let places = starts.into_iter().flat_map(|start| (0..32).map(move |offset| start + offset));
    each(places.flat_map(|addr| [1, 2, 4, 8].map(|size| (addr, size))), |(addr, size)| {
        let before = machine.device.accesses.load(Relaxed);
        let is_inside = addr >= BASE && addr + u64::from(size) <= BASE + LEN;
        let expected = if is_inside { Ok(()) } else { Err(Fault::DataAbort) };
        assert_eq!(machine.vcpu(0).write(Space::Mmio, addr, size, 0), expected);
        assert_eq!(machine.vcpu(0).read(Space::Mmio, addr, size).map(|_| ()), expected);
        assert_eq!(machine.device.accesses.load(Relaxed) - before, if is_inside { 2 } else { 0 });
    });
}

#[test]
fn a23_a_vcpu_that_is_stopped_and_woken_amid_an_access_has_it_done_once() {
    let machine = Machine::new(2);
    let slot = machine.xen.slot(machine.server.id(), 0);
    each((1..=5).flat_map(|wakes| [true, false].map(|answered| (wakes, answered))), |(wakes, answered)| {
        let before = machine.device.accesses.load(Relaxed);
        slot.put(Ioreq { addr: DEFERS, flags: Flags::default(), ..Ioreq::default() }, STATE_READY);
        slot.signal();
        let mut held = machine.device.take_deferred(1);
        if answered {
            held.clear();
            eventually("it is answered", || slot.get().0 == STATE_RESPONSE);
        }
        // The guest is suspended here, and resumed: events come again, the slot is as it was.
        let state = slot.get().0;
        for _ in 0..wakes {
            slot.signal();
            machine.vcpu(1).write32(BASE, wakes);
        }
        assert_eq!(slot.get().0, state);
        assert_eq!(state, if answered { STATE_RESPONSE } else { STATE_INPROCESS });
        drop(held);
        slot.take_answer();
        assert_eq!(slot.get().0, STATE_NONE);
        assert_eq!(machine.device.accesses.load(Relaxed) - before, 1 + u64::from(wakes));
    });
}

#[test]
fn a04_a11_whatever_state_a_slot_is_found_in_only_a_ready_one_is_served_and_only_that_one_written() {
    let machine = Machine::new(1);
    let slot = machine.xen.slot(machine.server.id(), 0);
    let states = (0..16).filter(|state| *state != STATE_READY);
    each(states.flat_map(|state| [0, 7, 8].map(|kind| (state, kind))), |(state, kind)| {
        let (before, wakes) = (machine.pump.counts().requests, machine.pump.counts().spurious_wakes);
        slot.put(Ioreq { data: 0x77, kind, addr: BASE, ..Ioreq::default() }, state);
        slot.signal();
        eventually("the pump looked", || machine.pump.counts().spurious_wakes > wakes);
        assert_eq!((slot.get(), machine.pump.counts().requests), ((state, 0x77), before));
        slot.put(Ioreq::default(), STATE_NONE);
        machine.vcpu(0).write32(BASE, 1);
    });
}

#[test]
fn a18_a19_a_guest_of_any_number_of_vcpus_is_served_on_each_of_them_or_refused() {
    each([1, 2, 3, 31, 32, 33, 64, 127, 128], |vcpus: u32| {
        let machine = Machine::new(vcpus);
        assert_eq!(machine.channels.bound(), vcpus as usize);
        for index in 0..vcpus {
            machine.vcpu(index as usize).write32(BASE, index);
            assert_eq!(machine.vcpu(0).read32(BASE), index);
        }
    });
    each([129, 130, 256, 1000, 4096], |vcpus| {
        let xen = FakeXen::new(vcpus);
        let refused = IoreqServer::create(xen.hypervisor(), Buffering::Off).err();
        assert!(matches!(refused, Some(ioreq::ServerError::TooManyVcpus(told)) if told == vcpus));
        assert_eq!(xen.servers(), []);
    });
}

#[test]
fn a13_a14_however_waiting_fails_and_how_often_requests_are_served() {
    let machine = Machine::new(2);
    let errnos = [Errno::INTR, Errno::AGAIN, Errno::IO, Errno::FBIG, Errno::NOMEM, Errno::INVAL, Errno::FAULT];
    each(errnos.iter().flat_map(|errno| [1, 2, 5].map(|times| (*errno, times))), |(errno, times)| {
        (0..times).for_each(|_| machine.channels.fail_next_wait(errno));
        machine.channels.overflow();
        machine.vcpu(0).write32(BASE, times);
        assert_eq!(machine.vcpu(1).read32(BASE), times);
    });
}

#[test]
fn a15_whenever_a_guest_dies_and_whatever_the_calls_say_then_its_server_ends_in_order() {
    let errnos = [Errno::NOTCONN, Errno::SRCH, Errno::INVAL, Errno::PERM];
    let steps = [0, 1, 2];
    each(errnos.iter().flat_map(|errno| steps.map(|step| (*errno, step))), |(errno, step)| {
        let machine = Machine::new(1);
        machine.vcpu(0).write32(BASE, 1);
        if step > 0 {
            machine.xen.fail_next(DmOp::SetEnabled, errno);
        }
        if step > 1 {
            machine.xen.fail_next(DmOp::UnmapWindow, errno);
            machine.xen.fail_next(DmOp::DestroyServer, errno);
        }
        machine.xen.kill_guest();
        assert_eq!(machine.vcpu(0).write(Space::Mmio, BASE, 4, 1), Err(Fault::Destroyed));
        let channels = Arc::clone(&machine.channels);
        drop(machine);
        assert!(Arc::strong_count(&channels) == 1, "somebody holds the channels");
    });
}
