//! The life of a server and its windows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::error::Error;
use std::sync::Arc;

use common::{BASE, DEFERS, Machine, window};
use io_bus::Space;
use ioreq::{Buffering, CloseError, IoreqServer, ServerError, XenError};
use rustix::io::Errno;
use testkit::xen::{DmOp, FakeXen, Fault};

#[test]
fn a_server_under_a_waiting_vcpu_is_not_destroyed() {
    let machine = Machine::new(1);
    let writer = machine.write_from(0, DEFERS, 1);
    let held = machine.device.take_deferred(1);
    let refused = machine.server.close();
    assert!(matches!(refused, Err(CloseError::InUse { vcpus, .. }) if vcpus == [0]));
    drop(held);
    writer.join().unwrap();
    machine.server.close().unwrap();
    assert_eq!(machine.xen.servers(), []);
}

#[test]
fn a_server_dropped_under_a_waiting_vcpu_is_left_in_place() {
    let machine = Machine::new(1);
    let (xen, id) = (Arc::clone(&machine.xen), machine.server.id());
    let writer = machine.write_from(0, DEFERS, 1);
    let held = machine.device.take_deferred(1);
    drop(machine);
    assert_eq!(xen.servers(), [id]);
    drop(held);
    writer.join().unwrap();
}

#[test]
fn closing_twice_destroys_once() {
    let xen = FakeXen::new(1);
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    server.close().unwrap();
    let next = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    server.close().unwrap();
    drop(server);
    assert_eq!(xen.servers(), [next.id()], "the number belongs to another now");
}

#[test]
fn closing_after_the_guest_died_is_no_error() {
    let xen = FakeXen::new(1);
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    let mapped = server.map(window(BASE)).unwrap();
    xen.kill_guest();
    server.close().unwrap();
    drop(mapped);
}

#[test]
fn a_refusal_to_destroy_is_told_and_tried_again_by_drop() {
    let xen = FakeXen::new(1);
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    xen.fail_next(DmOp::DestroyServer, Errno::PERM);
    assert!(matches!(server.close(), Err(CloseError::Xen(error)) if error.errno() == Errno::PERM));
    drop(server);
    assert_eq!(xen.servers(), []);
}

#[test]
fn a_window_that_xen_does_not_give_back_hurts_nobody() {
    let machine = Machine::new(1);
    let second = machine.server.map(window(BASE + 0x200)).unwrap();
    assert_eq!(second.window(), window(BASE + 0x200));
    machine.xen.fail_next(DmOp::UnmapWindow, Errno::INVAL);
    drop(second);
    machine.vcpu(0).write32(BASE, 1);
    // Mapped still, and no device is there: not an abort, but nothing.
    assert_eq!(machine.vcpu(0).read32(BASE + 0x200), u32::MAX);
}

#[test]
fn a_window_can_come_and_go_while_others_are_in_use() {
    let machine = Machine::new(1);
    let second = machine.server.map(window(BASE + 0x200)).unwrap();
    assert_eq!(machine.vcpu(0).read32(BASE + 0x200), u32::MAX, "mapped, and no device there yet");
    drop(second);
    assert_eq!(machine.vcpu(0).read(Space::Mmio, BASE + 0x200, 4), Err(Fault::DataAbort));
    machine.vcpu(0).write32(BASE, 1);
    assert_eq!(machine.xen.windows(machine.server.id()), [window(BASE)]);
}

#[test]
fn a_server_that_does_not_exist_cannot_be_attached_to() {
    let xen = FakeXen::new(1);
    let absent = IoreqServer::attach(xen.hypervisor(), ioreq::ServerId(3), Buffering::Off);
    assert!(matches!(absent.err(), Some(ServerError::Xen { source, .. }) if source.errno() == Errno::NOENT));
}

#[test]
fn windows_of_a_former_process_are_owned_by_the_next_whether_they_were_mapped_or_not() {
    let machine = Machine::new(1);
    let (xen, id) = (Arc::clone(&machine.xen), machine.server.id());
    machine.die();
    let next = Machine::attach(Arc::clone(&xen), id);
    let second = next.server.map(window(BASE + 0x200)).unwrap();
    assert_eq!(xen.windows(id), [window(BASE), window(BASE + 0x200)]);
    drop(second);
    drop(next);
    assert_eq!(xen.servers(), []);
}

#[test]
fn a_window_that_is_mapped_twice_by_one_process_is_refused() {
    let machine = Machine::new(1);
    let twice = machine.server.map(window(BASE)).err();
    assert!(matches!(twice, Some(ServerError::Xen { source, .. }) if source.errno() == Errno::EXIST));
}

#[test]
fn a_ring_cannot_be_had_from_a_server_made_without() {
    let xen = FakeXen::new(1);
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
    assert!(IoreqServer::attach(xen.hypervisor(), server.id(), Buffering::On).is_err());
    assert_eq!(xen.servers(), [server.id()], "a failure to attach changes nothing");
}

#[test]
fn errors_say_what_was_tried_and_then_why_without_repeating() {
    let xen = FakeXen::new(129);
    let too_many = IoreqServer::create(xen.hypervisor(), Buffering::Off).err().unwrap();
    assert!(too_many.to_string().contains("129 vCPUs; at most 128"), "{too_many}");
    let xen = FakeXen::new(1);
    xen.fail_next(DmOp::CreateServer, Errno::NOSPC);
    let full = IoreqServer::create(xen.hypervisor(), Buffering::Off).err().unwrap();
    assert_eq!(full.to_string(), "Cannot create an IOREQ server");
    assert!(full.source().unwrap().to_string().contains("No space left"));
    let explained = XenError::explained(Errno::NOSYS, "Xen was built without IOREQ servers");
    assert_eq!(
        (explained.to_string().as_str(), explained.errno()),
        ("Xen was built without IOREQ servers", Errno::NOSYS)
    );
    assert!(explained.source().is_none(), "it has no deeper reason");
}
