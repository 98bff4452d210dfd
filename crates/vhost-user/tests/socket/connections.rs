//! Front-ends come, go, and come back; the device stops.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::RawQueue;
use testkit::memory::FakeForeignMemory;

use crate::service::Service;
use crate::vmm::{RAM, RAM_LEN, SIZE, VERSION_1, Vmm};

#[test]
fn a_front_end_that_comes_again_goes_on_with_the_guests_rings() {
    let (service, device) = Service::with(Behaviour::Echo);
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    let queue = RawQueue::new(memory.clone(), RAM, SIZE);
    queue.clear();
    for _ in 0..20 {
        let mut vmm = Vmm::on(service.connect(), memory.clone());
        vmm.accept(VERSION_1);
        vmm.share(&[vmm.region(RAM, RAM_LEN)]);
        vmm.set_up(0, &queue, queue.used_idx());
        vmm.enable(0, true);
        vmm.exchange(0, &queue);
    }
    eventually("the last worker is gone", || device.workers.load(SeqCst) == 0);
}

#[test]
fn what_is_in_flight_when_the_front_end_goes_is_finished() {
    let (service, device) = Service::with(Behaviour::Hold);
    let (vmm, queue) = Vmm::running(&service);
    (0..3).for_each(|_| vmm.offer(0, &queue));
    eventually("the device has them", || device.held.load(SeqCst) == 3);
    drop(vmm);
    device.gate.open();
    queue.wait_used(3);
    eventually("the worker is gone", || device.workers.load(SeqCst) == 0);
}

#[test]
fn while_one_is_served_the_next_waits_its_turn() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    let waiting = service.connect();
    vmm.exchange(0, &queue);
    drop(vmm);
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    Vmm::on(waiting, memory);
}

#[test]
fn who_only_knocks_costs_nobody_anything() {
    let (service, _device) = Service::with(Behaviour::Echo);
    (0..100).for_each(|_| drop(service.connect()));
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
}

#[test]
fn a_device_is_attached_once_whoever_comes() {
    // Attaching it twice would panic.
    let (service, _device) = Service::with(Behaviour::Echo);
    (0..3).for_each(|_| drop(Vmm::ready(&service)));
}

#[test]
fn stopped_before_it_serves_it_does_not_begin() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let device = Arc::new(TestDevice::new(Behaviour::Echo));
    let server = vhost_user::Server::new("test", device, listener).unwrap();
    server.stopper().stop();
    server.serve().unwrap();
}

#[test]
fn a_socket_that_does_not_listen_is_an_error() {
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    let device = Arc::new(TestDevice::new(Behaviour::Echo));
    let server = vhost_user::Server::new("test", device, socket.into()).unwrap();
    assert!(server.serve().is_err());
}

#[test]
fn stopped_while_nobody_is_there_it_returns() {
    let (mut service, _device) = Service::with(Behaviour::Echo);
    service.stopper().stop();
    service.wait();
}

#[test]
fn stopped_while_connected_it_finishes_what_is_in_flight_before_the_socket_closes() {
    let (mut service, device) = Service::with(Behaviour::Hold);
    let (vmm, queue) = Vmm::running(&service);
    (0..3).for_each(|_| vmm.offer(0, &queue));
    eventually("the device has them", || device.held.load(SeqCst) == 3);
    service.stopper().stop();
    assert!(service.is_serving(), "three requests are in flight");
    device.gate.open();
    let mut socket = vmm.socket.try_clone().unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "the device closes it");
    assert_eq!(queue.used_idx(), 3, "the front-end may rely on the rings when it sees the end");
    service.wait();
    assert_eq!(device.workers.load(SeqCst), 0);
}

#[test]
fn a_stopper_may_be_used_twice_and_by_anyone() {
    let (mut service, _device) = Service::with(Behaviour::Echo);
    let (_vmm, _queue) = Vmm::running(&service);
    let stoppers: Vec<_> = (0..4).map(|_| service.stopper().clone()).collect();
    thread::scope(|scope| stoppers.iter().for_each(|stopper| drop(scope.spawn(|| stopper.stop()))));
    service.wait();
}
