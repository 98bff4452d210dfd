//! The broker when workers die: played by the test, as are Xen and the toolstack.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod rig;

use std::os::fd::OwnedFd;
use std::time::Duration;

use rig::{Rig, SERVER, TestWorker, Workers, XVDA, XVDB, disk_id, virtio_id, wait_until, workers};
use rustix::fs::fstat;
use tokio::sync::oneshot;
use virtio_backend::Record;
use xen_virtio::broker::guest::GuestView;
use xen_virtio::broker::{CLOSING_PATIENCE, DEATHS_PER_MINUTE, Request};
use xen_virtio::model::{Device, DeviceId};
use xen_virtio::protocol::{Answer, Former, Order, Report, ReservedWindow};

const IMAGE_BYTES: u64 = 1 << 20;

/// A guest's disk that is served; with what the worker was given for it.
fn serve(rig: &Rig, worker: Option<TestWorker>, workers: &Workers, number: u32) -> (TestWorker, Device, Given) {
    rig.create_disk(5, number, &rig.image(&format!("{number}.img"), IMAGE_BYTES));
    let worker = worker.unwrap_or_else(|| workers.next());
    let (device, descriptors, record) = worker.told_to_attach_with_record();
    worker.say(&Answer::Attached { id: device.id });
    rig.wait_for_state(5, number, "2");
    (worker, device, Given { descriptors, record })
}

struct Given {
    descriptors: Vec<OwnedFd>,
    record: Record,
}

fn window(device: &Device) -> ReservedWindow {
    ReservedWindow { id: device.id, place: device.place }
}

fn former(windows: &[ReservedWindow]) -> Option<Former> {
    Some(Former { server: SERVER, windows: windows.to_vec() })
}

fn view(rig: &Rig) -> GuestView {
    let (reply, views) = oneshot::channel();
    rig.request(Request::List(reply));
    views.blocking_recv().unwrap().remove(0).0
}

fn stage(rig: &Rig, id: DeviceId) -> &'static str {
    view(rig).devices.iter().find(|device| device.id == id).unwrap().stage
}

fn inodes(descriptors: &[OwnedFd]) -> Vec<u64> {
    descriptors.iter().map(|descriptor| fstat(descriptor).unwrap().st_ino).collect()
}

#[test]
fn a_worker_that_dies_is_followed_by_one_that_is_given_the_same_as_often_as_it_takes() {
    let (rig, workers) = Rig::start();
    let (mut worker, device, given) = serve(&rig, None, &workers, XVDA);
    given.record.device().store(&"as it was left").unwrap();

    for how in ["signal: 9 (SIGKILL)", "signal: 11 (SIGSEGV)", "exit status: 1"] {
        worker.end(how);
        worker = workers.next();
        assert_eq!(worker.former, former(&[window(&device)]));
        let (again, descriptors, record) = worker.told_to_attach_with_record();
        assert_eq!(stage(&rig, device.id), "restarting");
        worker.say(&Answer::Attached { id: device.id });

        assert_eq!((again, inodes(&descriptors)), (device.clone(), inodes(&given.descriptors)));
        assert_eq!(record.device::<String>().load().unwrap().as_deref(), Some("as it was left"));
    }

    wait_until(|| stage(&rig, device.id) == "serving");
    assert_eq!((view(&rig).restarts, rig.state(5, XVDA).as_deref()), (3, Some("2")));
    rig.close_disk(5, XVDA);
    worker.detach(XVDA);
    worker.stop();
    rig.wait_for_state(5, XVDA, "6");
}

#[test]
fn what_a_device_has_open_stays_open_between_workers_and_is_closed_before_the_device_is() {
    let (rig, workers) = Rig::start();
    let (worker, device, given) = serve(&rig, None, &workers, XVDA);
    // Of the worker's process, nothing is left.
    drop(given);
    worker.end("signal: 9");
    let next = workers.next();
    let (_, given) = next.told_to_attach();
    drop(given);
    let image = rig.directory.path().join(format!("{XVDA}.img"));
    let open = || virtio_disk::Image::open(&image, virtio_disk::Access::default()).map(drop);
    assert!(open().unwrap_err().to_string().contains("in use"), "the broker holds the lock");
    next.say(&Answer::Attached { id: device.id });

    rig.close_disk(5, XVDA);
    next.detach(XVDA);
    next.stop();
    rig.wait_for_state(5, XVDA, "6");

    open().unwrap();
}

#[test]
fn a_device_that_was_being_let_go_of_is_closed_and_the_others_go_on() {
    let (rig, workers) = Rig::start();
    let (worker, first, _) = serve(&rig, None, &workers, XVDA);
    let (worker, second, _) = serve(&rig, Some(worker), &workers, XVDB);

    rig.close_disk(5, XVDA);
    worker.told_to_detach(XVDA);
    worker.end("signal: 9");
    rig.wait_for_state(5, XVDA, "6");

    let next = workers.next();
    assert_eq!(next.former, former(&[window(&first), window(&second)]));
    assert_eq!(next.order().0, Order::Vacate { id: disk_id(XVDA) }, "the guest finds nothing there, and lives");
    assert_eq!(next.attach(), second);
    rig.close_disk(5, XVDB);
    next.detach(XVDB);
    next.stop();
    rig.wait_for_state(5, XVDB, "6");
}

#[test]
fn a_worker_that_dies_with_nothing_left_to_serve_is_not_followed() {
    let (rig, workers) = Rig::start();
    let (worker, ..) = serve(&rig, None, &workers, XVDA);

    rig.close_disk(5, XVDA);
    worker.told_to_detach(XVDA);
    worker.end("signal: 9");
    rig.wait_for_state(5, XVDA, "6");

    rig.settle();
    assert!(workers.none());
}

#[test]
fn a_device_whose_worker_dies_twice_as_it_is_served_first_is_refused_and_its_neighbour_is_not() {
    let (rig, workers) = Rig::start();
    let (worker, first, _) = serve(&rig, None, &workers, XVDA);
    rig.create_disk(5, XVDB, &rig.image("bad.img", IMAGE_BYTES));
    assert_eq!(worker.told_to_attach().0.id, disk_id(XVDB));
    worker.end("signal: 11");
    let second = workers.next();
    assert_eq!((second.attach(), second.told_to_attach().0.id), (first.clone(), disk_id(XVDB)));
    second.end("signal: 11");

    let third = workers.next();
    assert!(rig.wait_for_refusal(5, XVDB).contains("signal: 11"));
    assert_eq!(third.order().0, Order::Vacate { id: disk_id(XVDB) });
    assert_eq!(third.attach(), first);
}

#[test]
fn a_guest_that_does_not_wait_has_its_windows_and_those_without_a_device() {
    let (rig, workers) = Rig::start();
    rig.create_virtio(5, 0, "virtio,device4");
    let worker = workers.next();
    let place = worker.told_to_reserve(0);
    let (device, _) = worker.told_to_attach();
    worker.say(&Answer::Refused { id: device.id, reason: "no entropy".into() });
    assert_eq!(worker.order_to_do().0, Order::Vacate { id: virtio_id(0) });

    worker.end("signal: 9");

    let next = workers.next();
    assert_eq!(next.former, former(&[ReservedWindow { id: virtio_id(0), place }]));
    assert_eq!(next.order_to_do().0, Order::Vacate { id: virtio_id(0) });
}

#[test]
fn a_device_that_the_next_worker_cannot_serve_is_given_up_and_answered_for() {
    let (rig, workers) = Rig::start();
    let (worker, device, _) = serve(&rig, None, &workers, XVDA);
    worker.end("signal: 9");
    let next = workers.next();
    let _ = next.told_to_attach();
    next.say(&Answer::Refused { id: device.id, reason: "no memory".into() });

    let (order, descriptors) = next.order_to_do();

    assert_eq!(order, Order::GiveUp { id: device.id, place: device.place });
    Record::of(descriptors.into_iter().next().unwrap()).unwrap();
    assert_eq!(stage(&rig, device.id), "given up");
}

#[test]
fn where_workers_die_one_after_the_other_the_last_one_only_answers() {
    let (rig, workers) = Rig::start();
    let (mut worker, device, _) = serve(&rig, None, &workers, XVDA);
    for _ in 0..DEATHS_PER_MINUTE {
        worker.end("signal: 11");
        worker = workers.next();
        assert_eq!(worker.attach(), device);
    }
    worker.end("signal: 11");

    let last = workers.next();
    assert_eq!(last.order_to_do().0, Order::GiveUp { id: device.id, place: device.place });
    assert_eq!(stage(&rig, device.id), "given up");
    rig.close_disk(5, XVDA);
    last.detach(XVDA);
    last.stop();
    rig.wait_for_state(5, XVDA, "6");
    // The guest's next life.
    rig.create_disk(6, XVDA, &rig.image("again.img", IMAGE_BYTES));
    workers.next().attach();
    rig.wait_for_state(6, XVDA, "2");
}

#[test]
fn a_worker_that_cannot_be_started_is_tried_again() {
    let (rig, workers) = Rig::start();
    let (worker, device, _) = serve(&rig, None, &workers, XVDA);

    workers.processes_can_be_started(false);
    worker.end("signal: 9");
    wait_until(|| stage(&rig, device.id) == "restarting");
    assert!(workers.none());
    workers.processes_can_be_started(true);

    assert_eq!(workers.next().attach(), device);
}

#[test]
fn a_guest_that_ends_while_it_has_no_worker_is_let_go_of() {
    let (rig, workers) = Rig::start();
    let (worker, device, _) = serve(&rig, None, &workers, XVDA);
    workers.processes_can_be_started(false);
    worker.end("signal: 9");
    wait_until(|| stage(&rig, device.id) == "restarting");

    rig.close_disk(5, XVDA);
    rig.wait_for_state(5, XVDA, "6");

    workers.processes_can_be_started(true);
    rig.settle();
    assert!(workers.none());
}

#[test]
fn a_guest_that_is_gone_when_the_next_worker_comes_is_let_go_of() {
    let (rig, workers) = Rig::start();
    let (worker, ..) = serve(&rig, None, &workers, XVDA);
    worker.end("signal: 9");
    let next = workers.next();
    let _ = next.told_to_attach();

    next.say(&Answer::Report(Report::default()));
    next.end("exit status: 0");
    rig.close_disk(5, XVDA);

    rig.wait_for_state(5, XVDA, "6");
    assert!(workers.none());
}

#[test]
fn a_worker_that_let_go_too_slowly_is_killed_and_its_other_devices_are_served_by_the_next() {
    let (spawner, workers) = workers();
    let rig = Rig::start_with(spawner, Duration::from_millis(50), |_| {});
    let (worker, ..) = serve(&rig, None, &workers, XVDA);
    let (worker, second, _) = serve(&rig, Some(worker), &workers, XVDB);

    rig.close_disk(5, XVDA);
    worker.wait_until_killed();

    rig.wait_for_state(5, XVDA, "6");
    let next = workers.next();
    assert_eq!(next.order().0, Order::Vacate { id: disk_id(XVDA) });
    assert_eq!(next.attach(), second);
}

#[test]
fn a_first_worker_that_says_why_it_cannot_serve_is_not_followed() {
    let (spawner, workers) = workers();
    let rig = Rig::start_with(spawner, CLOSING_PATIENCE, |_| {});
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));
    let worker = workers.next();

    worker.say(&Answer::Unable { reason: "The event channel is taken".into() });
    worker.end("exit status: 1");

    assert_eq!(rig.wait_for_refusal(5, XVDA), "The event channel is taken");
    assert!(workers.none());
}
