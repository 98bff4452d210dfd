//! A broker that finds guests of a former one: their workers, played by the test, hand them over.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod rig;

use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rig::manager::Manager;
use rig::{PATIENCE, Rig, SERVER, TestWorker, Workers, XVDA, XVDB, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use tokio::sync::oneshot;
use virtio_backend::Record;
use xen_virtio::broker::Request;
use xen_virtio::broker::guest::GuestView;
use xen_virtio::channel::Channel;
use xen_virtio::door::Door;
use xen_virtio::model::{Device, DeviceId};
use xen_virtio::protocol::{Answer, Former, Order, Report, ReservedWindow, VERSION};

const DOMID: u16 = 5;

/// A disk that is served, and what its worker was given.
fn serve(rig: &Rig, worker: Option<TestWorker>, workers: &Workers, number: u32) -> (TestWorker, Device, Vec<OwnedFd>) {
    rig.create_disk(DOMID, number, &rig.image(&format!("{number}.img"), 1 << 20));
    let worker = worker.unwrap_or_else(|| workers.next());
    let (device, descriptors) = given(&worker);
    worker.say(&Answer::Attached { id: device.id });
    rig.wait_for_state(DOMID, number, "2");
    (worker, device, descriptors)
}

/// What a worker is told to serve, and all that comes along, the record at last.
fn given(worker: &TestWorker) -> (Device, Vec<OwnedFd>) {
    let (device, mut descriptors, record) = worker.told_to_attach_with_record();
    descriptors.push(record.as_fd().try_clone_to_owned().unwrap());
    (device, descriptors)
}

/// What a worker does at its door, beginning with who comes; ends with the worker.
fn behind(door: Door, live: impl FnOnce(Channel) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        wait_for(&door);
        live(door.open().unwrap().unwrap());
    })
}

fn wait_for(source: &impl AsFd) {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(source, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "waited in vain");
}

fn order(channel: &Channel) -> Option<Order> {
    wait_for(channel);
    channel.try_receive().unwrap().map(|(order, _)| order)
}

/// A worker that hands over what it holds, and yields.
fn willing(held: Vec<(DeviceId, Vec<OwnedFd>)>) -> impl FnOnce(Channel) + Send + 'static {
    move |channel| {
        assert_eq!(order(&channel), Some(Order::HandOver { version: VERSION }));
        for (id, descriptors) in held {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            channel.send(&Answer::Holds { id }, &descriptors).unwrap();
        }
        channel.send(&Answer::HandedOver, &[]).unwrap();
        assert_eq!(order(&channel), Some(Order::Yield));
        // As one does that had been told to by its former broker.
        channel.send(&Answer::Report(Report::default()), &[]).unwrap();
    }
}

fn door(rig: &Rig) -> Door {
    Door::make(rig.directory.path(), DOMID).unwrap()
}

fn view(rig: &Rig) -> GuestView {
    let (reply, views) = oneshot::channel();
    rig.request(Request::List(reply));
    views.blocking_recv().unwrap().remove(0).0
}

fn stages(rig: &Rig) -> Vec<&'static str> {
    view(rig).devices.iter().map(|device| device.stage).collect()
}

fn inodes(descriptors: &[OwnedFd]) -> Vec<u64> {
    descriptors.iter().map(|descriptor| fstat(descriptor).unwrap().st_ino).collect()
}

/// Has another broker come, whom this worker does not let take its guest over.
#[track_caller]
fn expect_left_alone(mut rig: Rig, worker: JoinHandle<()>) {
    rig.stop_broker();
    let workers = rig.start_another();
    worker.join().unwrap();

    assert_eq!(stages(&rig), ["left to a former worker"]);
    assert!(workers.none());
}

#[test]
fn a_new_broker_goes_on_with_a_guest_by_what_the_former_one_noted_and_its_worker_holds() {
    let (mut rig, workers) = Rig::start();
    let (worker, first, first_given) = serve(&rig, None, &workers, XVDA);
    let (_worker, second, second_given) = serve(&rig, Some(worker), &workers, XVDB);
    let note = Record::of(first_given.last().unwrap().try_clone().unwrap()).unwrap().device();
    note.store(&"as it was left".to_owned()).unwrap();
    let all_given = [inodes(&first_given), inodes(&second_given)];
    let former = behind(door(&rig), willing(vec![(first.id, first_given), (second.id, second_given)]));

    rig.stop_broker();
    let workers = rig.start_another();
    former.join().unwrap();

    let next = workers.next();
    let windows = [&first, &second].map(|device| ReservedWindow { id: device.id, place: device.place }).to_vec();
    assert_eq!(next.former, Some(Former { server: SERVER, windows }));
    for (device, its_own) in [&first, &second].into_iter().zip(all_given) {
        let (again, given_again) = given(&next);
        assert_eq!((&again, inodes(&given_again)), (device, its_own));
        next.say(&Answer::Attached { id: device.id });
    }
    wait_until(|| stages(&rig) == ["serving", "serving"]);
    assert_eq!((rig.state(DOMID, XVDA).as_deref(), rig.state(DOMID, XVDB).as_deref()), (Some("2"), Some("2")));

    rig.close_disk(DOMID, XVDA);
    next.detach(XVDA);
    rig.close_disk(DOMID, XVDB);
    next.detach(XVDB);
    next.stop();
    rig.wait_for_state(DOMID, XVDB, "6");
    wait_until(|| rig.directory.path().join("workers").read_dir().unwrap().next().is_none());
}

#[test]
fn what_the_toolstack_asked_for_meanwhile_is_done() {
    let (mut rig, workers) = Rig::start();
    let (worker, device, given) = serve(&rig, None, &workers, XVDA);
    let former = behind(door(&rig), move |channel| {
        willing(vec![(device.id, given)])(channel);
        drop(worker);
    });
    rig.stop_broker();
    rig.close_disk(DOMID, XVDA);

    let workers = rig.start_another();
    former.join().unwrap();

    let next = workers.next();
    next.told_to_attach();
    next.say(&Answer::Attached { id: device.id });
    next.detach(XVDA);
    next.stop();
    rig.wait_for_state(DOMID, XVDA, "6");
}

#[test]
fn a_worker_that_is_not_willing_goes_on_and_its_guest_is_left_to_it() {
    let (rig, workers) = Rig::start();
    let (_worker, _, _) = serve(&rig, None, &workers, XVDA);
    let former = behind(door(&rig), |channel| {
        order(&channel).unwrap();
        channel.send(&Answer::Unable { reason: "of another version".into() }, &[]).unwrap();
        assert_eq!(order(&channel), None, "it is not told to end");
    });

    expect_left_alone(rig, former);
}

#[test]
fn a_worker_that_hands_over_something_else_than_a_record_keeps_its_guest() {
    let (rig, workers) = Rig::start();
    let (_worker, device, mut given) = serve(&rig, None, &workers, XVDA);
    given.pop();
    let former = behind(door(&rig), move |channel| {
        order(&channel).unwrap();
        let descriptors: Vec<_> = given.iter().map(AsFd::as_fd).collect();
        channel.send(&Answer::Holds { id: device.id }, &descriptors).unwrap();
        channel.send(&Answer::HandedOver, &[]).unwrap();
        assert_eq!(order(&channel), None, "it is not told to end");
    });

    expect_left_alone(rig, former);
}

/// Both end at once: the broker is told to, and of the worker, played by the test, nothing is left.
fn end_both(rig: &mut Rig, worker: TestWorker, given: Vec<OwnedFd>) {
    drop(door(rig));
    rig.stop_broker();
    drop((worker, given));
}

/// How the disk is called there.
fn kept_name(generation: u64) -> String {
    format!("5/virtio_disk/{XVDA}/{generation}")
}

fn kept(rig: &Rig) -> Vec<String> {
    rig.manager.as_ref().unwrap().names()
}

#[test]
fn a_guest_whose_worker_and_broker_end_at_once_is_gone_on_with_from_the_service_managers_store_however_often() {
    let (mut rig, workers) = Rig::start_under(Manager::start());
    let (mut worker, device, mut descriptors) = serve(&rig, None, &workers, XVDA);
    let note = Record::of(descriptors.last().unwrap().try_clone().unwrap()).unwrap().device();
    note.store(&"as it was left".to_owned()).unwrap();
    let inodes_given = inodes(&descriptors);
    drop(note);

    for generation in 0..3 {
        assert_eq!(kept(&rig), [kept_name(generation)]);
        end_both(&mut rig, worker, descriptors);
        let workers = rig.start_another();

        worker = workers.next();
        let windows = vec![ReservedWindow { id: device.id, place: device.place }];
        assert_eq!(worker.former, Some(Former { server: SERVER, windows }));
        let again;
        (again, descriptors) = given(&worker);
        assert_eq!((&again, inodes(&descriptors)), (&device, inodes_given.clone()));
        let record = Record::of(descriptors.last().unwrap().try_clone().unwrap()).unwrap();
        assert_eq!(record.device::<String>().load().unwrap().as_deref(), Some("as it was left"));
        worker.say(&Answer::Attached { id: device.id });
        wait_until(|| stages(&rig) == ["serving"]);
    }
}

#[test]
fn what_is_closed_is_given_back_before_the_toolstack_hears_of_it() {
    let (mut rig, workers) = Rig::start_under(Manager::start());
    let (worker, device, descriptors) = serve(&rig, None, &workers, XVDA);
    // What comes from the manager stays open in the broker.
    end_both(&mut rig, worker, descriptors);
    let workers = rig.start_another();
    let worker = workers.next();
    drop(given(&worker));
    worker.say(&Answer::Attached { id: device.id });
    let image = rig.directory.path().join(format!("{XVDA}.img"));
    let open = || virtio_disk::Image::open(&image, virtio_disk::Access::default()).map(drop);
    assert!(open().unwrap_err().to_string().contains("in use"));

    rig.close_disk(DOMID, XVDA);
    worker.detach(XVDA);
    worker.stop();
    rig.wait_for_state(DOMID, XVDA, "6");

    open().unwrap();
    assert_eq!(kept(&rig), Vec::<String>::new());
}

#[test]
fn what_is_kept_of_a_guest_that_has_ended_meanwhile_and_what_nobody_knows_is_given_back() {
    let (mut rig, workers) = Rig::start_under(Manager::start());
    let (worker, _, descriptors) = serve(&rig, None, &workers, XVDA);
    let manager = rig.manager.as_ref().unwrap();
    for name in ["stored", "70000/virtio/0/0", "5/virtio/0/0/0", "5/else/0/0", "6/virtio/0/0"] {
        manager.put(name, std::fs::File::open("/dev/null").unwrap().into());
    }
    let notes = rig.directory.path().join("workers/5.json");
    assert!(notes.exists());

    end_both(&mut rig, worker, descriptors);
    let workers = rig.start_another_where(false);

    wait_until(|| kept(&rig).is_empty());
    assert!(workers.none() && !notes.exists());
}

#[test]
fn of_two_entries_the_newer_counts() {
    let (mut rig, workers) = Rig::start_under(Manager::start());
    let (worker, device, descriptors) = serve(&rig, None, &workers, XVDA);
    let inodes_given = inodes(&descriptors);
    // As a broker leaves it that ends when it has kept a device again, and not given back what was kept before.
    let (stale, _) = Channel::pair().unwrap();
    let manager = rig.manager.as_ref().unwrap();
    let newest = manager.rename(&kept_name(0), &kept_name(8));
    manager.put(&kept_name(7), stale.into());
    assert!(newest);

    end_both(&mut rig, worker, descriptors);
    let workers = rig.start_another();

    let worker = workers.next();
    let (again, descriptors) = given(&worker);
    assert_eq!((again, inodes(&descriptors)), (device, inodes_given));
    wait_until(|| kept(&rig) == [kept_name(9)]);
}

/// Both end at once, and the next broker finds no record that it could go on with.
#[track_caller]
fn expect_given_up(mut rig: Rig, worker: TestWorker, device: &Device, descriptors: Vec<OwnedFd>) {
    end_both(&mut rig, worker, descriptors);
    let workers = rig.start_another();

    let last = workers.next();
    let windows = vec![ReservedWindow { id: device.id, place: device.place }];
    assert_eq!(last.former, Some(Former { server: SERVER, windows }));
    let (order, descriptors) = last.order_to_do();
    assert_eq!(order, Order::GiveUp { id: device.id, place: device.place });
    let record = Record::of(descriptors.into_iter().next().unwrap()).unwrap();
    assert!(record.device::<String>().load().unwrap().is_none(), "nothing of the former one is believed");
    assert_eq!(stages(&rig), ["given up"]);

    rig.close_disk(DOMID, XVDA);
    last.detach(XVDA);
    last.stop();
    rig.wait_for_state(DOMID, XVDA, "6");
}

#[test]
fn where_nothing_is_kept_the_devices_are_given_up_and_answered_for() {
    let (rig, workers) = Rig::start();
    let (worker, device, descriptors) = serve(&rig, None, &workers, XVDA);

    expect_given_up(rig, worker, &device, descriptors);
}

#[test]
fn a_device_whose_record_is_of_another_version_is_given_up_and_answered_for() {
    let (rig, workers) = Rig::start_under(Manager::start());
    let (worker, device, descriptors) = serve(&rig, None, &workers, XVDA);
    // The second word is the version.
    rustix::io::pwrite(descriptors.last().unwrap(), &u64::MAX.to_le_bytes(), 8).unwrap();

    expect_given_up(rig, worker, &device, descriptors);
}

#[test]
fn a_broker_that_makes_way_names_its_successor_and_leaves_it_what_is_kept() {
    let (mut rig, workers) = Rig::start_under(Manager::start());
    let _served = serve(&rig, None, &workers, XVDA);

    rig.request(Request::MakeWay("/run/next".into()));

    let ended = rig.wait_for_end();
    assert_eq!((ended.left, ended.successor), (vec![DOMID], Some("/run/next".into())));
    // The manager has heard all before.
    drop(rig.manager.as_ref().unwrap().store());
    assert_eq!(kept(&rig), [kept_name(0)]);
}

#[test]
fn what_is_kept_of_a_guest_that_is_left_alone_stays_where_it_is() {
    let (mut rig, workers) = Rig::start_under(Manager::start());
    let (_worker, _, _given) = serve(&rig, None, &workers, XVDA);
    let former = behind(door(&rig), |channel| {
        order(&channel).unwrap();
        channel.send(&Answer::Unable { reason: "of another version".into() }, &[]).unwrap();
        assert_eq!(order(&channel), None, "it is not told to end");
    });
    let before = kept(&rig);
    rig.stop_broker();
    let workers = rig.start_another();
    former.join().unwrap();

    assert!(workers.none());
    assert_eq!(kept(&rig), before);
}

#[test]
fn notes_that_cannot_be_read_cost_their_guest_only() {
    let (mut rig, workers) = Rig::start();
    let (_worker, _, _) = serve(&rig, None, &workers, XVDA);
    rig.stop_broker();
    for (domid, text) in [(5, "{\"version\": 4000}"), (6, "{"), (7, "")] {
        std::fs::write(rig.directory.path().join(format!("workers/{domid}.json")), text).unwrap();
    }

    let workers = rig.start_another();

    assert_eq!(stages(&rig), ["left to a former worker"]);
    assert!(workers.none());
}
