//! What is offered and accepted.

use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;

use testkit::device::{Behaviour, FEATURE, UNWELCOME_FEATURE, eventually};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};

use crate::service::Service;
use crate::vmm::{EVENT_IDX, PROTOCOL_FEATURES, RAM, RAM_LEN, VERSION_1, Vmm};

const INDIRECT_DESC: u64 = 1 << 28;

#[test]
fn the_devices_features_are_offered_with_those_of_rings_and_protocol() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let offered = Vmm::connect(&service).frontend.get_features().unwrap();
    let whole = FEATURE | UNWELCOME_FEATURE | VERSION_1 | EVENT_IDX | INDIRECT_DESC | PROTOCOL_FEATURES;
    assert_eq!(offered, whole);
}

#[test]
fn the_worker_is_started_with_the_accepted_features_but_not_with_that_of_the_protocol() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::ready(&service);
    vmm.accept(VERSION_1 | FEATURE | EVENT_IDX);
    let queue = vmm.queue(0);
    vmm.set_up(0, &queue, 0);
    vmm.enable(0, true);
    vmm.exchange(0, &queue);
    assert_eq!(device.features.load(SeqCst), VERSION_1 | FEATURE | EVENT_IDX);
}

#[test]
fn with_features_that_will_not_do_no_ring_runs_until_the_driver_accepts_others() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::connect(&service);
    vmm.share(&[vmm.region(RAM, RAM_LEN)]);
    let queue = vmm.queue(0);
    for hopeless in [0, FEATURE, VERSION_1 | UNWELCOME_FEATURE] {
        vmm.accept(hopeless);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        assert_eq!(device.starts.load(SeqCst), 0, "{hopeless:#x}");
    }
    vmm.accept(VERSION_1);
    vmm.exchange(0, &queue);
}

#[test]
fn features_that_change_while_a_ring_runs_start_its_worker_anew() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
    vmm.accept(VERSION_1 | FEATURE);
    vmm.exchange(0, &queue);
    assert_eq!((device.features.load(SeqCst), device.starts.load(SeqCst)), (VERSION_1 | FEATURE, 2));
    vmm.accept(VERSION_1 | FEATURE);
    vmm.exchange(0, &queue);
    assert_eq!(device.starts.load(SeqCst), 2, "the same once more changes nothing");
}

#[test]
fn without_the_protocols_feature_rings_need_no_enabling() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let vmm = Vmm::connect(&service);
    vmm.frontend.set_features(VERSION_1).unwrap();
    vmm.share(&[vmm.region(RAM, RAM_LEN)]);
    let queue = vmm.queue(0);
    vmm.set_up(0, &queue, 0);
    vmm.exchange(0, &queue);
}

#[test]
fn rings_may_be_enabled_before_features_are_accepted() {
    // As QEMU's network card does; the front-end of `vhost` would not.
    let (service, device) = Service::with(Behaviour::Echo);
    let vmm = Vmm::connect(&service);
    let mut socket = vmm.socket.try_clone().unwrap();
    for (flags, answer) in [(1, 0), (1 | 8, 20)] {
        let enable = [u32::from(FrontendReq::SET_VRING_ENABLE), flags, 8, 0, 1];
        let enable: Vec<u8> = enable.into_iter().flat_map(u32::to_ne_bytes).collect();
        socket.write_all(&enable).unwrap();
        socket.read_exact(&mut vec![0; answer]).unwrap();
    }
    vmm.accept(VERSION_1);
    vmm.share(&[vmm.region(RAM, RAM_LEN)]);
    let queue = vmm.queue(0);
    vmm.set_up(0, &queue, 0);
    vmm.exchange(0, &queue);
    assert_eq!(device.starts.load(SeqCst), 1);
}

#[test]
fn features_that_were_not_offered_end_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let vmm = Vmm::connect(&service);
    assert!(vmm.frontend.set_features(VERSION_1 | 1 << 3).is_err());
    assert!(vmm.frontend.get_features().is_err());
    Vmm::ready(&service);
}

#[test]
fn every_queue_is_counted() {
    let (service, _device) = Service::with(Behaviour::Echo);
    assert_eq!(Vmm::connect(&service).frontend.get_queue_num().unwrap(), 2);
}

#[test]
fn a_front_end_that_wants_no_replies_gets_none() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    vmm.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    vmm.enable(0, false);
    vmm.enable(0, true);
    vmm.exchange(0, &queue);
    // A reply that nobody had asked for would be taken for the answer to this.
    assert_eq!(vmm.frontend.get_queue_num().unwrap(), 2);
    eventually("the worker has started twice", || device.starts.load(SeqCst) == 2);
}
