//! What the pump does for a guest that behaves: deferral, cost, stopping, recovery.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::sync::Arc;
use std::thread;

use common::{BASE, DEFERS, Machine, Ram, eventually, window};
use io_bus::{Bus, Space};
use ioreq::{Buffering, IoreqServer, Pump, PumpError};
use rustix::io::Errno;
use testkit::xen::{Calls, DmOp, FakeXen, Fault, Flags, Ioreq, STATE_INPROCESS, STATE_RESPONSE};

#[test]
fn a_write_answered_later_holds_up_its_own_vcpu_only() {
    let machine = Machine::new(2);
    let writer = machine.write_from(0, DEFERS, 0);
    let held = machine.device.take_deferred(1);
    for value in 0..50 {
        machine.vcpu(1).write32(BASE, value);
        assert_eq!(machine.vcpu(1).read32(BASE), value);
    }
    assert!(!writer.is_finished());
    drop(held);
    writer.join().unwrap();
}

#[test]
fn a_write_may_be_answered_by_any_thread_even_one_that_panics() {
    let machine = Machine::new(1);
    let writer = machine.write_from(0, DEFERS, 0);
    let held = machine.device.take_deferred(1);
    let lane = thread::spawn(move || {
        let _held = held;
        panic!("a lane dies");
    });
    assert!(lane.join().is_err());
    writer.join().unwrap();
}

#[test]
fn a_string_of_deferred_writes_is_answered_with_the_last() {
    let machine = Machine::new(1);
    let string = Ioreq { addr: DEFERS - 4, count: 3, flags: Flags::default(), ..Ioreq::default() };
    let writer = thread::spawn({
        let vcpu = machine.vcpu(0);
        // One item before the register that defers, one in it, one after; twice.
        move || (0..2).for_each(|_| vcpu.access(Space::Mmio, string).map(|_| ()).unwrap())
    });
    drop(machine.device.take_deferred(1));
    drop(machine.device.take_deferred(1));
    writer.join().unwrap();
    assert_eq!(machine.device.accesses.load(std::sync::atomic::Ordering::Relaxed), 6);
}

#[test]
fn an_access_of_a_lone_vcpu_costs_three_system_calls() {
    let machine = Machine::new(1);
    (0..1000).for_each(|value| machine.vcpu(0).write32(BASE, value));
    let calls = machine.channels.calls();
    // One more for the event that binding makes.
    assert!(calls.waits <= 1001 && calls.unmasks <= 1001, "{calls:?}");
    assert_eq!(calls.notifies, 1000);
}

#[test]
fn channels_that_fire_together_are_unmasked_together() {
    let machine = Machine::new(16);
    eventually("all binding events were read", || {
        let Calls { waits, unmasks, .. } = machine.channels.calls();
        waits == unmasks && machine.pump.counts().spurious_wakes >= 1
    });
    assert!(machine.channels.calls().unmasks <= 16);
}

#[test]
fn stopping_answers_what_came_until_then_and_disables_the_server() {
    let machine = Machine::new(1);
    let (xen, server) = (Arc::clone(&machine.xen), Arc::clone(&machine.server));
    machine.vcpu(0).write32(BASE, 1);
    machine.pump.stop();
    assert!(!xen.is_enabled(server.id()));
    assert_eq!(xen.vcpu(0).read(Space::Mmio, BASE, 4), Err(Fault::DataAbort));
    server.close().unwrap();
    assert_eq!(xen.servers(), []);
}

#[test]
fn stopping_under_load_leaves_nobody_waiting() {
    for _ in 0..20 {
        let machine = Machine::new(3);
        let vcpus: Vec<_> = (0..3)
            .map(|index| {
                let vcpu = machine.vcpu(index);
                // Until the server takes no more.
                thread::spawn(move || while vcpu.write(Space::Mmio, BASE, 4, 1).is_ok() {})
            })
            .collect();
        machine.vcpu(0).invalidate().unwrap();
        machine.pump.stop();
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        machine.server.close().unwrap();
    }
}

#[test]
fn a_deferred_answer_outlives_the_pump() {
    let machine = Machine::new(1);
    let writer = machine.write_from(0, DEFERS, 0);
    let held = machine.device.take_deferred(1);
    machine.pump.stop();
    assert_eq!(machine.server.busy_vcpus(), [0]);
    drop(held);
    writer.join().unwrap();
    machine.server.close().unwrap();
}

#[test]
fn a_dropped_machine_leaves_nothing_in_xen() {
    let machine = Machine::new(2);
    let xen = Arc::clone(&machine.xen);
    machine.vcpu(1).write32(BASE, 1);
    drop(machine);
    assert_eq!(xen.servers(), []);
}

#[test]
fn a_request_taken_by_a_process_that_died_is_answered_by_the_next() {
    let machine = Machine::new(2);
    let (xen, id) = (Arc::clone(&machine.xen), machine.server.id());
    let writer = machine.write_from(1, DEFERS, 0);
    let held = machine.device.take_deferred(1);
    machine.die();
    assert_eq!(xen.slot(id, 1).get().0, STATE_INPROCESS);
    let next = Machine::attach(Arc::clone(&xen), id);
    drop(next.device.take_deferred(1));
    writer.join().unwrap();
    assert_eq!(next.pump.counts().requests, 1);
    // The dead process's answer finds nothing to answer.
    drop(held);
    drop(next);
    assert_eq!(xen.servers(), []);
}

#[test]
fn an_answer_that_a_process_gave_and_died_before_it_signalled_is_signalled_by_the_next() {
    let machine = Machine::new(1);
    let (xen, id) = (Arc::clone(&machine.xen), machine.server.id());
    let writer = machine.write_from(0, DEFERS, 0);
    let held = machine.device.take_deferred(1);
    machine.die();
    let answered = Ioreq { addr: DEFERS, flags: Flags::default(), ..Ioreq::default() };
    xen.slot(id, 0).put(answered, STATE_RESPONSE);
    let next = Machine::attach(Arc::clone(&xen), id);
    writer.join().unwrap();
    assert_eq!(next.pump.counts().requests, 0);
    drop(held);
}

#[test]
fn a_released_server_stays_with_its_windows_for_the_next() {
    let machine = Machine::new(1);
    let (xen, id) = (Arc::clone(&machine.xen), machine.server.id());
    machine.die();
    assert!(xen.is_enabled(id));
    assert_eq!(xen.windows(id), [window(BASE)]);
    let next = Machine::attach(Arc::clone(&xen), id);
    next.vcpu(0).write32(BASE, 1);
}

#[test]
fn a_pump_that_cannot_bind_leaves_the_server_disabled_and_nobody_waiting() {
    let xen = FakeXen::new(1);
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    let mapped = server.map(window(BASE)).unwrap();
    let channels = xen.channels();
    channels.fail_next_bind(Errno::NOMEM);
    let pump = Pump::spawn(Arc::clone(&server), channels, Bus::new(), Arc::<Ram>::default());
    assert!(matches!(pump.err(), Some(PumpError::Bind { vcpu: 0, source }) if source.errno() == Errno::NOMEM));
    assert!(!xen.is_enabled(server.id()));
    drop((mapped, server));
    assert_eq!(xen.servers(), []);
}

#[test]
fn a_pump_that_cannot_bind_what_a_former_process_left_leaves_it_for_the_next_to_try() {
    let machine = Machine::new(2);
    let (xen, id) = (Arc::clone(&machine.xen), machine.server.id());
    let writer = machine.write_from(1, DEFERS, 0);
    let held = machine.device.take_deferred(1);
    machine.die();
    let server = IoreqServer::attach(xen.hypervisor(), id, Buffering::Off).unwrap();
    let channels = xen.channels();
    channels.fail_next_bind(Errno::NOMEM);
    let pump = Pump::spawn(Arc::clone(&server), channels, Bus::new(), Arc::<Ram>::default());
    assert!(matches!(pump.err(), Some(PumpError::Bind { .. })));
    drop(server);
    assert!(xen.is_enabled(id));
    assert_eq!((xen.windows(id), xen.slot(id, 1).get().0), (vec![window(BASE)], STATE_INPROCESS));
    let next = Machine::attach(Arc::clone(&xen), id);
    drop(next.device.take_deferred(1));
    writer.join().unwrap();
    drop(held);
}

#[test]
fn a_pump_whose_server_cannot_be_enabled_says_so() {
    let xen = FakeXen::new(1);
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    xen.fail_next(DmOp::SetEnabled, Errno::PERM);
    let pump = Pump::spawn(server, xen.channels(), Bus::new(), Arc::<Ram>::default());
    assert!(matches!(pump.err(), Some(PumpError::Enable(source)) if source.errno() == Errno::PERM));
    assert_eq!(xen.servers(), []);
}

#[test]
fn an_access_to_a_device_that_is_still_to_come_waits_and_holds_up_nobody_else() {
    let machine = Machine::new(2);
    let early = window(BASE + 0x1000);
    let mapped = machine.server.map(early).unwrap();
    let claim = machine.bus.reserve(early).unwrap();
    let vcpu = machine.vcpu(0);
    let reader = thread::spawn(move || vcpu.read32(early.first() + 8));
    eventually("the read waits", || machine.pump.counts().reads == 1);
    machine.vcpu(1).write32(BASE + 8, 7);
    assert_eq!(machine.vcpu(1).read32(BASE + 8), 7);
    assert!(!reader.is_finished());

    claim.fill(Arc::clone(&machine.device) as _);

    assert_eq!(reader.join().unwrap(), 7, "the same device, for simplicity");
    drop((mapped, claim));
}

#[test]
fn an_access_whose_device_never_comes_is_answered_all_the_same() {
    let machine = Machine::new(1);
    let early = window(BASE + 0x1000);
    let mapped = machine.server.map(early).unwrap();
    let claim = machine.bus.reserve(early).unwrap();
    let vcpu = machine.vcpu(0);
    let reader = thread::spawn(move || vcpu.read32(early.first()));
    eventually("the read waits", || machine.pump.counts().reads == 1);

    drop(claim);

    assert_eq!(reader.join().unwrap(), u32::MAX);
    drop(mapped);
}
