//! Devices of any kind, of which the toolstack does not wait for the backend; toolstack and workers played by the test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::thread;

use rig::{Rig, TestSpawner, TestWorker, XVDA, XVDB, disk_id, virtio_id, virtio_node, wait_until, workers};
use tokio::sync::{mpsc, oneshot};
use vhost_user::Server;
use virtio_backend::{Kind, Operation, reach};
use virtio_disk::Disk;
use xen_virtio::broker::prepare::Directories;
use xen_virtio::broker::store::FdStore;
use xen_virtio::broker::{Broker, CLOSING_PATIENCE, Request, Settings};
use xen_virtio::model::{Model, Place};
use xen_virtio::protocol::{Answer, Order, Report};
use xen_virtio::toolstack::Toolstack;
use xen_virtio::toolstack::fixed::Fixed;

const RNG: &str = "virtio,device4";
const DISK: &str = "virtio,device2";

fn serve(rig: &Rig, worker: &TestWorker, number: u32) {
    worker.told_to_reserve(number);
    worker.attach();
    rig.wait_for_virtio_state(5, number, "2");
}

#[test]
fn the_window_is_claimed_first_and_the_device_follows() {
    let (rig, workers) = Rig::start();
    rig.create_virtio(5, 0, RNG);

    let worker = workers.next();
    let place = worker.told_to_reserve(0);
    let (device, descriptors) = worker.told_to_attach();
    worker.say(&Answer::Attached { id: device.id });
    rig.wait_for_virtio_state(5, 0, "2");

    assert_eq!((place, device.place), (Place { base: 0x200_0000, irq: 33 }, place));
    assert_eq!((device.name.as_str(), device.model.kind(), descriptors.len()), ("rng0", "rng", 0));
    rig.close_virtio(5, 0);
    assert_eq!(worker.order().0, Order::Detach { id: virtio_id(0) });
    worker.say(&Answer::Detached { id: virtio_id(0), used: false });
    worker.stop();
    rig.wait_for_virtio_state(5, 0, "6");
}

#[test]
fn a_devices_options_are_those_of_the_entry_of_its_kind_and_order() {
    let (rig, workers) = Rig::start();
    let (first, second) = (rig.image("first.img", 4096), rig.image("second.img", 8192));
    let file = format!(
        "[[disk]]\nimage = {first:?}\n[[rng]]\nrate = {{ per_second = 1, burst = 2 }}\n[[disk]]\nimage = {second:?}\n"
    );
    std::fs::write(rig.directory.path().join("guest-5.toml"), file).unwrap();
    for (number, spelled) in [(0, DISK), (1, RNG), (2, DISK)] {
        rig.create_virtio(5, number, spelled);
    }

    let worker = workers.next();
    let mut attached = Vec::new();
    while attached.len() < 3 {
        if let (Order::Attach { device }, _) = worker.order() {
            attached.push(*device);
        }
    }

    attached.sort_by_key(|device| device.id);
    let names: Vec<_> = attached.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["disk0", "rng0", "disk1"]);
    let Model::Disk(disk) = &attached[2].model else { panic!("a disk") };
    assert_eq!(disk.image, second);
}

#[test]
fn a_device_of_another_program_comes_with_its_connection_and_with_what_that_program_says() {
    let (rig, workers) = Rig::start();
    let socket = rig.directory.path().join("backend.sock");
    let image = File::options().read(true).write(true).open(rig.image("disk.img", 4096)).unwrap();
    let config = virtio_disk::Config::default();
    let backend = Disk::make(&config, vec![image.into()], reach::directly::<Disk>(&config));
    let server = Server::new("backend", backend.unwrap(), UnixListener::bind(&socket).unwrap()).unwrap();
    thread::spawn(|| server.serve());
    let file = format!("[[vhost-user]]\ndevice = \"block\"\nsocket = {socket:?}\n");
    std::fs::write(rig.directory.path().join("guest-5.toml"), file).unwrap();
    rig.create_virtio(5, 0, DISK);

    let worker = workers.next();
    worker.told_to_reserve(0);
    let (device, descriptors) = worker.told_to_attach();

    assert_eq!((device.name.as_str(), device.model.kind(), device.model.device_id()), ("block0", "vhost-user", 2));
    let made = device.model.make(descriptors, device.model.reach_directly()).unwrap();
    let mut capacity = [0; 8];
    made.read_config(0, &mut capacity);
    assert_eq!((made.identity().device_id, u64::from_le_bytes(capacity)), (2, 8));
}

#[test]
fn a_device_that_cannot_be_is_shown_as_none_and_the_reason_is_in_xenstore() {
    let (rig, workers) = Rig::start();
    std::fs::write(rig.directory.path().join("guest-5.toml"), "\n[[disk]]\nimage = \"/nonexistent\"\n").unwrap();
    rig.create_virtio(5, 0, DISK);

    let worker = workers.next();
    worker.told_to_reserve(0);
    assert_eq!(worker.order().0, Order::Vacate { id: virtio_id(0) });

    let error = virtio_node(5, 0, "error");
    wait_until(|| rig.text(&error).is_some());
    let reason = rig.text(&error).unwrap();
    assert!(reason.contains("guest-5.toml:2") && reason.contains("/nonexistent"), "{reason}");
    assert_eq!(rig.text(&virtio_node(5, 0, "state")).as_deref(), Some("1"), "libxl finds it when it closes the device");
    rig.close_virtio(5, 0);
    assert_eq!(worker.order().0, Order::Detach { id: virtio_id(0) });
    worker.say(&Answer::Detached { id: virtio_id(0), used: true });
    worker.stop();
    rig.wait_for_virtio_state(5, 0, "6");
}

#[test]
fn h04_a_type_that_no_kind_serves_is_refused_in_words() {
    let (rig, workers) = Rig::start();
    rig.create_virtio(5, 0, "virtio,device1a");

    let worker = workers.next();
    worker.told_to_reserve(0);
    assert_eq!(worker.order().0, Order::Vacate { id: virtio_id(0) });

    let error = virtio_node(5, 0, "error");
    wait_until(|| {
        rig.text(&error).is_some_and(|reason| reason.contains("device1a") && reason.contains("rng (device4)"))
    });
}

#[test]
fn two_devices_cannot_have_the_same_of_the_host() {
    let (rig, workers) = Rig::start();
    let image = rig.image("shared.img", 4096);
    std::fs::write(rig.directory.path().join("guest-6.toml"), format!("[[disk]]\nimage = {image:?}\n")).unwrap();
    // The disk of the first is locked by the backend as well; a device that is not would be caught here alone.
    rig.create_disk(5, XVDA, &image);
    let first = workers.next();
    first.attach();
    rig.wait_for_state(5, XVDA, "2");

    rig.create_virtio(6, 0, DISK);

    let second = workers.next();
    second.told_to_reserve(0);
    assert_eq!(second.order().0, Order::Vacate { id: virtio_id(0) });
    let error = virtio_node(6, 0, "error");
    wait_until(|| rig.text(&error).is_some());
    assert!(rig.text(&error).unwrap().contains("shared.img"), "{:?}", rig.text(&error));
}

#[test]
fn a_disks_place_can_carry_another_device() {
    let (rig, workers) = Rig::start();
    let file = rig.directory.path().join("entropy.toml");
    std::fs::write(&file, "[[rng]]\n").unwrap();
    rig.create_disk(5, XVDB, &file);

    let worker = workers.next();
    let device = worker.attach();

    assert_eq!((device.id, device.name.as_str(), device.model.kind()), (disk_id(XVDB), "xvdb", "rng"));
    rig.wait_for_state(5, XVDB, "2");
}

#[test]
fn a_program_for_one_kind_leaves_others_alone() {
    let (spawner, workers) = workers();
    let rig = Rig::start_as(spawner, CLOSING_PATIENCE, Some(4), |_| {});
    rig.create_disk(5, XVDA, &rig.image("disk.img", 4096));
    rig.create_virtio(5, 0, DISK);
    rig.create_virtio(5, 1, RNG);

    let worker = workers.next();
    serve(&rig, &worker, 1);

    assert_eq!(rig.state(5, XVDA).as_deref(), Some("1"));
    assert_eq!(rig.text(&virtio_node(5, 0, "state")).as_deref(), Some("1"));
    assert!(worker.has_no_order());
}

#[test]
fn what_an_operator_asks_goes_to_the_device_and_the_answer_back() {
    let (rig, workers) = Rig::start();
    rig.create_virtio(5, 0, RNG);
    let worker = workers.next();
    serve(&rig, &worker, 0);
    let ask = |guest: &str, device: &str| {
        let (reply, outcome) = oneshot::channel();
        let operation = Operation::Link { up: false };
        let request = Request::Operate { guest: guest.into(), device: device.into(), operation, reply };
        rig.requests.blocking_send(request).unwrap();
        outcome
    };

    let outcome = ask("guest-5", "rng0");
    assert_eq!(worker.order().0, Order::Operate { id: virtio_id(0), operation: Operation::Link { up: false } });
    worker.say(&Answer::Operated { id: virtio_id(0), outcome: Err("it has no cable".into()) });
    assert_eq!(outcome.blocking_recv().unwrap(), Err("it has no cable".to_owned()));

    let words = |guest, device| ask(guest, device).blocking_recv().unwrap().unwrap_err();
    assert!(words("nobody", "rng0").contains("No guest \"nobody\""));
    assert!(words("5", "net0").contains("it has: rng0"));
}

/// A broker that serves a static file, until `requests` goes.
fn serve_file(
    file: &std::path::Path,
    spawner: TestSpawner,
    requests: mpsc::Receiver<Request>,
) -> thread::JoinHandle<()> {
    let directory = file.parent().unwrap().to_owned();
    let toolstack = Toolstack::Static(Fixed::load(file).unwrap());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directories = Directories { configurations: directory.clone(), runtime: directory };
        let store = FdStore::new(None, Vec::new());
        let closing_patience = CLOSING_PATIENCE;
        let settings = Settings { directories, only: None, closing_patience, deaths_per_minute: 5, store };
        runtime.block_on(Broker::run(toolstack, spawner, settings, requests, || {})).unwrap();
    })
}

#[test]
fn a_static_file_needs_no_toolstack_and_a_guest_that_ends_is_served_again_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("static.toml");
    std::fs::write(&file, "[[guest]]\ndomid = 5\nname = \"web\"\n[[guest.rng]]\nbase = 0x2000000\nirq = 33\n").unwrap();
    let (spawner, workers) = workers();
    let (requests, for_broker) = mpsc::channel(1);
    let broker = serve_file(&file, spawner, for_broker);

    for _life in 0..2 {
        let worker = workers.next();
        let Order::Reserve { id, place } = worker.order().0 else { panic!("a reservation") };
        assert_eq!((worker.domid, place), (5, Place { base: 0x200_0000, irq: 33 }));
        let device = worker.attach();
        assert_eq!((device.id, device.name.as_str(), device.owner.guest.as_str()), (id, "rng0", "web"));

        assert_eq!(worker.order().0, Order::Report, "nobody else can tell when the guest ends");
        worker.say(&Answer::Report(Report { alive: true, ..Report::default() }));
        assert_eq!(worker.order().0, Order::Report);
        worker.say(&Answer::Report(Report::default()));
        assert_eq!(worker.order().0, Order::Detach { id });
        worker.say(&Answer::Detached { id, used: true });
        worker.stop();
        workers.all_domains_go_and_come();
    }
    requests.blocking_send(Request::Stop).unwrap();
    broker.join().unwrap();
}
