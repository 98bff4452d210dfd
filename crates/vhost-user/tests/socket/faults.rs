//! A lane that faults is dead until its rings were stopped, and costs no other.

use std::sync::atomic::Ordering::SeqCst;

use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::{Descriptor, RawQueue};
use vhost::VhostBackend;
use virtio_backend::Fault;

use crate::service::Service;
use crate::vmm::{BUFFERS, Vmm};

fn becomes(device: &TestDevice, behaviour: Behaviour) {
    *device.behaviour.lock().unwrap() = behaviour;
}

/// Waits until the device says that a queue is broken.
fn wait_broken(vmm: &Vmm, index: usize) {
    eventually("the device reports its queue", || vmm.errs[index].read().is_ok());
}

#[test]
fn whatever_goes_wrong_is_reported_and_mended_by_stopping_the_ring() {
    for trouble in [Behaviour::Fault, Behaviour::Panic, Behaviour::FailStart] {
        let (service, device) = Service::with(trouble);
        let (mut vmm, queue) = Vmm::running(&service);
        vmm.offer(0, &queue);
        wait_broken(&vmm, 0);
        // The report comes first: what the worker waits for when it is dropped may take long.
        eventually("the worker is gone", || device.workers.load(SeqCst) == 0);
        becomes(&device, Behaviour::Echo);
        vmm.kicks[0].write(1).unwrap();
        vmm.enable(0, true);
        assert_eq!(device.workers.load(SeqCst), 0, "enabled once more, it stays dead");
        vmm.enable(0, false);
        let queue = vmm.queue(0);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        vmm.exchange(0, &queue);
    }
}

#[test]
fn a_panic_while_a_ring_stops_leaves_the_connection() {
    let (service, device) = Service::with(Behaviour::PanicInDrain);
    let (vmm, queue) = Vmm::running(&service);
    vmm.offer(0, &queue);
    eventually("the device has it", || device.held.load(SeqCst) == 1);
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 1, "what is lost is lost");
    wait_broken(&vmm, 0);
    becomes(&device, Behaviour::Echo);
    let queue = vmm.queue(0);
    vmm.set_up(0, &queue, 0);
    vmm.exchange(0, &queue);
}

#[test]
fn another_lane_goes_on() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (mut vmm, good) = Vmm::running(&service);
    vmm.exchange(0, &good);
    becomes(&device, Behaviour::Fault);
    let bad = vmm.queue(1);
    vmm.set_up(1, &bad, 0);
    vmm.enable(1, true);
    vmm.offer(1, &bad);
    wait_broken(&vmm, 1);
    assert!(vmm.errs[0].read().is_err());
    vmm.exchange(0, &good);
}

#[test]
fn a_device_that_breaks_as_a_whole_says_so_of_each_ring() {
    let (service, device) = Service::with(Behaviour::Echo);
    let vmm = Vmm::ready(&service);
    (0..2).for_each(|index| vmm.set_up(index, &vmm.queue(index as u64), 0));
    device.signals.get().unwrap().needs_reset(&Fault::Bug("as told".into()));
    (0..2).for_each(|index| wait_broken(&vmm, index));
}

#[test]
fn a_lane_of_two_rings_lives_again_when_both_were_stopped() {
    let device = TestDevice::with_lanes(Behaviour::Echo, &[16; 2], std::iter::once(0..2).collect());
    let (service, device) = Service::of(device);
    let mut vmm = Vmm::ready(&service);
    let queues = [vmm.queue(0), vmm.queue(1)];
    vmm.set_up(0, &queues[0], 0);
    vmm.enable(0, true);
    vmm.exchange(0, &queues[0]);
    // The second ring's size breaks both.
    vmm.set_up(1, &queues[1], 5);
    vmm.frontend.set_vring_num(1, 3).unwrap();
    vmm.enable(1, true);
    wait_broken(&vmm, 0);
    vmm.enable(1, false);
    assert_eq!(vmm.frontend.get_vring_base(1).unwrap(), 5, "it was never taken");
    vmm.set_up(1, &queues[1], 0);
    vmm.enable(1, true);
    assert_eq!(device.starts.load(SeqCst), 1, "the first was not stopped yet");
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 1);
    vmm.enable(1, false);
    for (index, queue) in queues.iter().enumerate() {
        queue.clear();
        vmm.set_up(index, queue, 0);
        vmm.enable(index, true);
        vmm.exchange(index, queue);
    }
    assert_eq!(device.starts.load(SeqCst), 2);
}

/// A driver's ring that cannot be worked, and how to make it so.
type Foul = (&'static str, fn(&Vmm, &RawQueue));

#[test]
fn a_driver_that_breaks_its_ring_costs_that_ring() {
    let kinds: [Foul; 4] = [
        ("loops", |_, queue| {
            queue.write_descriptor(0, Descriptor::readable(BUFFERS, 4).then(0));
            queue.publish(0);
        }),
        ("is out of memory", |_, queue| {
            queue.write_chain(0, &[Descriptor::readable(0x1000, 4)]);
            queue.publish(0);
        }),
        ("has a head beyond the table", |_, queue| queue.publish(200)),
        ("jumps", |_, queue| queue.set_avail_idx(1000)),
    ];
    let (service, _device) = Service::with(Behaviour::Echo);
    for (what, spoil) in kinds {
        let (mut vmm, queue) = Vmm::running(&service);
        vmm.exchange(0, &queue);
        spoil(&vmm, &queue);
        vmm.kicks[0].write(1).unwrap();
        eventually(what, || vmm.errs[0].read().is_ok());
        vmm.enable(0, false);
        let queue = vmm.queue(0);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        vmm.exchange(0, &queue);
    }
}

#[test]
fn g10_sizes_that_no_queue_can_have_break_the_ring_and_not_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    // The device's first queue has 16 entries at most.
    for size in [0, 3, 32, 0x8000, 0xffff] {
        let mut vmm = Vmm::ready(&service);
        let queue = vmm.queue(0);
        vmm.set_up(0, &queue, 0);
        vmm.frontend.set_vring_num(0, size).unwrap();
        vmm.enable(0, true);
        wait_broken(&vmm, 0);
        vmm.enable(0, false);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        vmm.exchange(0, &queue);
    }
}
