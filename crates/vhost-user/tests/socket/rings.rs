//! When a ring runs, where it goes on, and who is notified.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::RawQueue;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::service::Service;
use crate::vmm::{EVENT_IDX, SIZE, VERSION_1, Vmm};

/// A device of four queues, of which the last two share a lane.
fn four_queues(behaviour: Behaviour) -> TestDevice {
    TestDevice::with_lanes(behaviour, &[16; 4], vec![0..1, 1..2, 2..4])
}

#[test]
fn a_request_is_answered_and_the_driver_called() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    for _ in 0..100 {
        vmm.exchange(0, &queue);
        vmm.wait_call(0);
    }
}

#[test]
fn what_was_offered_before_the_ring_ran_is_answered_without_a_kick() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::ready(&service);
    let queue = vmm.queue(0);
    vmm.set_up(0, &queue, 0);
    vmm.publish(&queue);
    assert_eq!(queue.used_idx(), 0);
    vmm.enable(0, true);
    queue.wait_used(1);
    vmm.wait_call(0);
}

#[test]
fn queues_run_side_by_side_and_each_calls_for_itself() {
    let (service, device) = Service::of(four_queues(Behaviour::Echo));
    let mut vmm = Vmm::ready(&service);
    let queues: Vec<RawQueue> = (0..4).map(|index| vmm.queue(index)).collect();
    for (index, queue) in queues.iter().enumerate() {
        vmm.set_up(index, queue, 0);
        vmm.enable(index, true);
    }
    for index in [3, 0, 2, 1] {
        vmm.exchange(index, &queues[index]);
        vmm.wait_call(index);
    }
    assert!(vmm.calls.iter().all(|call| call.read().is_err()), "each once");
    assert_eq!(device.workers.load(SeqCst), 3, "a worker for each lane");
}

#[test]
fn with_event_index_the_driver_is_called_when_it_asked_to_be() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::ready(&service);
    vmm.accept(VERSION_1 | EVENT_IDX);
    let queue = vmm.queue(0);
    queue.set_used_event(1);
    vmm.set_up(0, &queue, 0);
    vmm.enable(0, true);
    vmm.exchange(0, &queue);
    vmm.exchange(0, &queue);
    vmm.wait_call(0);
    assert!(vmm.calls[0].read().is_err(), "not for the first");
}

#[test]
fn a_ring_that_is_disabled_and_enabled_goes_on_where_it_stood() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    for _ in 0..3 {
        vmm.exchange(0, &queue);
        vmm.enable(0, false);
        assert_eq!(device.workers.load(SeqCst), 0);
        vmm.offer(0, &queue);
        assert_eq!(queue.used_idx() + 1, queue.avail_idx(), "a disabled ring is left alone");
        vmm.enable(0, true);
        queue.wait_used(queue.avail_idx());
    }
}

#[test]
fn of_two_rings_in_a_lane_each_stops_and_goes_on_by_itself() {
    let (service, device) = Service::of(four_queues(Behaviour::Echo));
    let mut vmm = Vmm::ready(&service);
    let queues = [2, 3].map(|index| (index, vmm.queue(index as u64)));
    for (index, queue) in &queues {
        vmm.set_up(*index, queue, 0);
        vmm.enable(*index, true);
        vmm.exchange(*index, queue);
    }
    let [(_, first), (_, second)] = &queues;
    vmm.enable(2, false);
    vmm.publish(first);
    vmm.exchange(3, second);
    assert_eq!((first.used_idx(), device.starts.load(SeqCst)), (1, 1), "their worker lives");
    vmm.enable(2, true);
    first.wait_used(2);
    assert_eq!(vmm.frontend.get_vring_base(3).unwrap(), 2);
    vmm.exchange(2, first);
    assert_eq!(vmm.frontend.get_vring_base(2).unwrap(), 3);
    assert_eq!(device.workers.load(SeqCst), 0);
}

#[test]
fn a_stopped_ring_tells_where_it_stands_and_is_started_there_again() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    for round in 1..=5 {
        vmm.exchange(0, &queue);
        assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), round);
        assert_eq!(device.workers.load(SeqCst), 0, "the worker dies with its last ring");
        vmm.set_up(0, &queue, round as u16);
    }
}

#[test]
fn a_ring_that_never_ran_stands_where_it_was_said_to() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let vmm = Vmm::ready(&service);
    vmm.frontend.set_vring_base(1, 17).unwrap();
    assert_eq!(vmm.frontend.get_vring_base(1).unwrap(), 17);
}

#[test]
fn a_ring_wraps_at_2_to_the_16() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::ready(&service);
    let queue = vmm.queue(0);
    queue.set_avail_idx(0xfffe);
    vmm.memory.store::<u16>(queue.used_ring() + 2, 0xfffe);
    vmm.set_up(0, &queue, 0xfffe);
    vmm.enable(0, true);
    for _ in 0..4 {
        vmm.exchange(0, &queue);
    }
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 2);
}

#[test]
fn stopping_a_ring_waits_for_what_is_in_flight() {
    let (service, device) = Service::with(Behaviour::Hold);
    let (vmm, queue) = Vmm::running(&service);
    (0..3).for_each(|_| vmm.offer(0, &queue));
    eventually("the device has them", || device.held.load(SeqCst) == 3);
    let stopping = vmm.frontend.clone();
    let stopping = thread::spawn(move || stopping.get_vring_base(0).unwrap());
    device.gate.open();
    assert_eq!(stopping.join().unwrap(), 3);
    assert_eq!(queue.used_idx(), 3, "all are given back before the answer");
}

#[test]
fn a_reset_stops_every_ring_and_the_next_start_is_from_zero() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
    vmm.frontend.reset_device().unwrap();
    assert_eq!(device.workers.load(SeqCst), 0);
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 0);
    let queue = vmm.queue(0);
    vmm.accept(VERSION_1);
    vmm.set_up(0, &queue, 0);
    vmm.enable(0, true);
    vmm.exchange(0, &queue);
}

#[test]
fn giving_up_ownership_stops_the_rings() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
    vmm.frontend.reset_owner().unwrap();
    assert_eq!(device.workers.load(SeqCst), 0);
}

#[test]
fn another_kick_takes_the_place_of_the_first() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
    vmm.kicks[0] = EventFd::new(EFD_NONBLOCK).unwrap();
    vmm.frontend.set_vring_kick(0, &vmm.kicks[0]).unwrap();
    vmm.exchange(0, &queue);
}

#[test]
fn another_call_is_told_at_once_and_from_then_on() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    vmm.calls[0] = EventFd::new(EFD_NONBLOCK).unwrap();
    vmm.frontend.set_vring_call(0, &vmm.calls[0]).unwrap();
    assert_eq!(vmm.calls[0].read().unwrap(), 1, "what the first was told may not have been heard");
    vmm.exchange(0, &queue);
    vmm.wait_call(0);
}

#[test]
fn a_call_that_comes_before_the_ring_runs_is_not_made_yet() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let vmm = Vmm::ready(&service);
    vmm.set_up(0, &vmm.queue(0), 0);
    assert!(vmm.calls[0].read().is_err());
}

#[test]
fn queue_sizes_up_to_the_devices_will_do() {
    let (service, _device) = Service::with(Behaviour::Echo);
    for size in [SIZE, 16] {
        let mut vmm = Vmm::ready(&service);
        let queue = RawQueue::new(vmm.memory.clone(), crate::vmm::RAM, size);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        vmm.exchange(0, &queue);
    }
}
