//! The broker between a toolstack and workers, both played by the test.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod rig;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rig::{Rig, TestWorker, Workers, XVDA, XVDB, disk_id, node, wait_until, workers};
use xen_virtio::broker::control::{self, Listing};
use xen_virtio::broker::{CLOSING_PATIENCE, Request};
use xen_virtio::model::Model;
use xen_virtio::protocol::{Answer, Counter, DeviceReport, Order, Report};

const IMAGE_BYTES: u64 = 1 << 20;

/// A guest whose one disk is served.
fn serve_one(rig: &Rig, workers: &Workers, domid: u16) -> TestWorker {
    rig.create_disk(domid, XVDA, &rig.image(&format!("{domid}.img"), IMAGE_BYTES));
    let worker = workers.next();
    worker.attach();
    rig.wait_for_state(domid, XVDA, "2");
    worker
}

#[test]
fn a_new_guest_is_ready_only_when_its_worker_says_so() {
    let (rig, workers) = Rig::start();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));

    let worker = workers.next();
    let (device, descriptors) = worker.told_to_attach();
    let before = rig.state(5, XVDA);
    worker.say(&Answer::Attached { id: device.id });
    rig.wait_for_state(5, XVDA, "2");

    assert_eq!((worker.domid, before.as_deref()), (5, Some("1")));
    assert_eq!((device.place.base, device.place.irq), (0x0200_0000, 33));
    let Model::Disk(disk) = device.model else { panic!("a disk") };
    assert_eq!((device.name.as_str(), disk.read_only), ("xvda", false));
    let image = File::from(descriptors.into_iter().next().unwrap());
    assert_eq!(image.metadata().unwrap().len(), IMAGE_BYTES);
}

#[test]
fn a_disk_is_closed_when_the_worker_has_ended_and_not_before() {
    let (rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);

    rig.close_disk(5, XVDA);
    worker.detach(XVDA);
    assert_eq!(worker.order().0, Order::Stop);
    let before = rig.state(5, XVDA);
    worker.end("exit status: 0");
    rig.wait_for_state(5, XVDA, "6");

    assert_eq!(before.as_deref(), Some("5"));
}

#[test]
fn two_disks_of_a_guest_have_one_worker_and_the_first_is_closed_while_the_other_is_in_use() {
    let (rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);
    rig.create_disk(5, XVDB, &rig.image("second.img", IMAGE_BYTES));
    worker.attach();
    rig.wait_for_state(5, XVDB, "2");

    rig.close_disk(5, XVDA);
    worker.detach(XVDA);
    rig.wait_for_state(5, XVDA, "6");
    assert!(worker.has_no_order());
    rig.close_disk(5, XVDB);
    worker.detach(XVDB);
    worker.stop();
    rig.wait_for_state(5, XVDB, "6");

    assert!(workers.none());
}

#[test]
fn one_guests_end_does_not_concern_another() {
    let (rig, workers) = Rig::start();
    let first = serve_one(&rig, &workers, 5);
    let second = serve_one(&rig, &workers, 6);

    first.end("signal: 11");
    workers.next().attach();
    rig.close_disk(5, XVDA);

    assert_eq!(second.domid, 6);
    assert!(second.has_no_order());
    assert_eq!(rig.state(6, XVDA).as_deref(), Some("2"));
}

#[test]
fn guests_that_were_there_before_are_seen_for_what_they_are() {
    let (spawner, workers) = workers();
    let rig = Rig::start_with(spawner, CLOSING_PATIENCE, |rig| {
        let image = rig.image("new.img", IMAGE_BYTES);
        rig.create_disk(5, XVDA, &image);
        for (domid, state) in [(6, "2"), (7, "4"), (8, "5"), (9, "6")] {
            rig.write_disk(domid, XVDA, &image);
            rig.set(&node(domid, XVDA, "state"), state);
        }
    });

    let worker = workers.next();
    worker.attach();
    rig.wait_for_state(5, XVDA, "2");
    rig.wait_for_state(8, XVDA, "6");

    let left_alone = [6, 7, 9].map(|domid| rig.state(domid, XVDA).unwrap());
    assert_eq!((worker.domid, left_alone), (5, ["2", "4", "6"].map(str::to_owned)));
    assert!(workers.none());
    rig.close_disk(6, XVDA);
    rig.wait_for_state(6, XVDA, "6");
}

#[test]
fn a_directory_that_vanishes_is_let_go_of_and_not_written_again() {
    let (rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);

    rig.xenstored.rm("/local/domain/0/backend/virtio_disk/5");
    worker.detach(XVDA);
    worker.stop();
    rig.settle();

    assert_eq!(rig.state(5, XVDA), None);
}

#[test]
fn a_domain_that_dies_without_a_word_is_let_go_of() {
    let (rig, workers) = Rig::start();
    let other = serve_one(&rig, &workers, 4);
    let worker = serve_one(&rig, &workers, 5);

    rig.xenstored.release_domain(5);
    worker.detach(XVDA);
    worker.stop();
    rig.close_disk(5, XVDA);
    rig.wait_for_state(5, XVDA, "6");

    assert!(other.has_no_order());
}

#[test]
fn a_reboot_is_a_new_domain_with_a_new_worker() {
    let (rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);
    rig.close_disk(5, XVDA);
    worker.detach(XVDA);
    worker.stop();
    rig.wait_for_state(5, XVDA, "6");
    rig.xenstored.rm("/local/domain/0/backend/virtio_disk/5");
    rig.xenstored.release_domain(5);

    let again = serve_one(&rig, &workers, 6);

    assert_eq!(again.domid, 6);
}

#[test]
fn h06_a_missing_image_fails_the_creation_at_once_with_the_reason() {
    let (rig, workers) = Rig::start();
    rig.create_disk(5, XVDA, "/nonexistent/disk.img".as_ref());

    let reason = rig.wait_for_refusal(5, XVDA);

    assert!(reason.contains("/nonexistent/disk.img") && reason.contains("No such file"), "{reason}");
    assert!(workers.none());
    // libxl removes the rest itself; the next guest is not concerned.
    rig.xenstored.rm("/local/domain/0/backend/virtio_disk/5");
    serve_one(&rig, &workers, 6);
}

#[test]
fn h10_a_mistake_in_the_guests_file_fails_the_creation_with_file_and_line() {
    let (rig, _workers) = Rig::start();
    std::fs::write(rig.directory.path().join("guest-5.toml"), "[[disk]]\nvdev = \"xvda\"\ncahce = \"none\"\n").unwrap();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));

    let reason = rig.wait_for_refusal(5, XVDA);

    assert!(reason.contains("guest-5.toml:3: Unknown field `cahce`"), "{reason}");
}

#[test]
fn the_guests_file_is_found_by_name_or_uuid() {
    let (rig, workers) = Rig::start();
    std::fs::write(rig.directory.path().join("0000-5.toml"), "[[disk]]\nvdev = \"xvda\"\nserial = \"by uuid\"\n")
        .unwrap();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));

    let (device, _) = workers.next().told_to_attach();

    let Model::Disk(disk) = device.model else { panic!("a disk") };
    assert_eq!(disk.serial, "by uuid");
}

#[test]
fn a_guest_without_a_file_has_that_of_guests_without_one() {
    let (rig, workers) = Rig::start();
    let write = |name: &str, serial: &str| {
        let text = format!("[[disk]]\nvdev = \"xvda\"\nserial = \"{serial}\"\n");
        std::fs::write(rig.directory.path().join(name), text).unwrap();
    };
    write("default.toml", "shared");
    write("guest-5.toml", "own");
    for (domid, serial) in [(5, "own"), (6, "shared")] {
        rig.create_disk(domid, XVDA, &rig.image(&format!("{domid}.img"), IMAGE_BYTES));

        let (device, _) = workers.next().told_to_attach();

        let Model::Disk(disk) = device.model else { panic!("a disk") };
        assert_eq!(disk.serial, serial);
    }
}

#[test]
fn a_device_by_grants_is_refused_with_the_remedy_where_the_kernel_has_no_driver_for_them() {
    let (rig, workers) = Rig::start();
    workers.no_gntdev();
    rig.set(&node(5, XVDA, "grant_usage"), "1");
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));

    let reason = rig.wait_for_refusal(5, XVDA);

    assert!(reason.contains("xvda") && reason.contains("modprobe xen-gntdev"), "{reason}");
    // One that uses none is not concerned.
    serve_one(&rig, &workers, 6);
}

#[test]
fn h04_a_description_that_no_libxl_wrote_is_refused() {
    let rows =
        [("base", "0x"), ("irq", "7"), ("mode", "?"), ("frontend-id", "9"), ("params", ""), ("transport", "pci")];
    let (rig, workers) = Rig::start();
    for ((key, value), domid) in rows.into_iter().zip(10..) {
        rig.write_disk(domid, XVDA, &rig.image("disk.img", IMAGE_BYTES));
        rig.set(&node(domid, XVDA, key), value);
        rig.set(&node(domid, XVDA, "state"), "1");

        let reason = rig.wait_for_refusal(domid, XVDA);

        assert!(reason.contains(key), "{key}={value}: {reason}");
    }
    assert!(workers.none());
}

#[test]
fn h04_nodes_that_are_no_devices_and_states_that_are_none_are_left_alone() {
    let (rig, workers) = Rig::start();
    rig.set("/local/domain/0/backend/virtio_disk/mars/51712/state", "1");
    rig.set("/local/domain/0/backend/virtio_disk/05/51712/state", "1");
    rig.write_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));
    for state in ["", "0", "7", "-1", "one", &"1".repeat(4000)] {
        rig.set(&node(5, XVDA, "state"), state);
        rig.settle();
    }
    rig.xenstored.set(&node(5, XVDA, "state"), [0xff, 0xfe]);
    rig.settle();
    assert!(workers.none());

    rig.set(&node(5, XVDA, "state"), "1");
    workers.next().attach();
    rig.wait_for_state(5, XVDA, "2");
}

#[test]
fn a_device_that_the_worker_refuses_fails_the_creation_and_the_worker_ends() {
    let (rig, workers) = Rig::start();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));
    let worker = workers.next();
    let (device, _) = worker.told_to_attach();

    worker.say(&Answer::Refused { id: device.id, reason: "the window\n\u{1b}[31m is taken".into() });

    let reason = rig.wait_for_refusal(5, XVDA);
    assert_eq!(reason, "the window  [31m is taken");
    worker.stop();
}

#[test]
fn a_worker_that_cannot_serve_says_why() {
    let (rig, workers) = Rig::start();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));
    let worker = workers.next();

    worker.say(&Answer::Unable { reason: "This Xen has no IOREQ servers".into() });
    worker.end("exit status: 1");

    assert_eq!(rig.wait_for_refusal(5, XVDA), "This Xen has no IOREQ servers");
}

#[test]
fn a_worker_that_is_stuck_is_killed_and_the_toolstack_answered() {
    let (spawner, workers) = workers();
    let rig = Rig::start_with(spawner, Duration::from_millis(50), |_| {});
    let worker = serve_one(&rig, &workers, 5);

    rig.close_disk(5, XVDA);
    worker.wait_until_killed();

    rig.wait_for_state(5, XVDA, "6");
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed() {
    let (rig, workers) = Rig::start();
    for (garbage, domid) in [&b"{\"attached\":{}}"[..], b"\xff", &[b' '; 70_000]].into_iter().zip(5..) {
        let worker = serve_one(&rig, &workers, domid);

        rustix::net::send(worker.socket(), garbage, rustix::net::SendFlags::empty()).unwrap();

        worker.wait_until_killed();
        assert_eq!(workers.next().attach().id, disk_id(XVDA), "as any other that dies");
    }
}

#[test]
fn what_a_worker_says_of_devices_it_does_not_have_changes_nothing() {
    let (rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);
    let neighbour = serve_one(&rig, &workers, 6);
    rig.write_disk(6, XVDB, &rig.image("b.img", IMAGE_BYTES));

    for id in [disk_id(XVDA), disk_id(XVDB), disk_id(7)] {
        worker.say(&Answer::Detached { id, used: true });
        worker.say(&Answer::Attached { id });
        worker.say(&Answer::Refused { id, reason: "lies".into() });
    }
    worker.say(&Answer::Report(Report { alive: true, ..Report::default() }));
    rig.close_disk(5, XVDA);
    worker.detach(XVDA);
    worker.stop();
    rig.wait_for_state(5, XVDA, "6");

    assert!(neighbour.has_no_order());
    assert_eq!(rig.state(6, XVDA).as_deref(), Some("2"));
}

#[test]
fn a_toolstack_that_gives_up_meanwhile_is_not_overruled() {
    let (rig, workers) = Rig::start();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));
    let worker = workers.next();
    let (device, _) = worker.told_to_attach();

    rig.close_disk(5, XVDA);
    worker.told_to_detach(XVDA);
    worker.say(&Answer::Attached { id: device.id });
    worker.say(&Answer::Detached { id: device.id, used: true });
    assert_eq!(worker.order().0, Order::Stop);

    assert_eq!(rig.state(5, XVDA).as_deref(), Some("5"));
    worker.end("exit status: 0");
    rig.wait_for_state(5, XVDA, "6");
}

#[test]
fn a_transaction_that_meets_a_conflict_is_repeated() {
    let (rig, workers) = Rig::start();
    rig.create_disk(5, XVDA, &rig.image("disk.img", IMAGE_BYTES));
    let worker = workers.next();
    rig.xenstored.fail_commits(3);

    worker.attach();

    rig.wait_for_state(5, XVDA, "2");
    wait_until(|| rig.xenstored.transaction_count() == 0);
}

#[test]
fn h05_a_restart_of_xenstored_loses_nothing() {
    let (rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);
    rig.create_disk(6, XVDA, &rig.image("late.img", IMAGE_BYTES));
    let late = workers.next();
    let (device, _) = late.told_to_attach();

    rig.xenstored.refuse_connections().unwrap();
    rig.xenstored.disconnect_all();
    late.say(&Answer::Attached { id: device.id });
    rig.close_disk(5, XVDA);
    rig.xenstored.accept_connections().unwrap();

    worker.detach(XVDA);
    worker.stop();
    rig.wait_for_state(5, XVDA, "6");
    rig.wait_for_state(6, XVDA, "2");
}

#[test]
fn a_broker_that_is_stopped_leaves_guests_to_their_workers() {
    let (mut rig, workers) = Rig::start();
    let worker = serve_one(&rig, &workers, 5);

    rig.request(Request::Stop);

    assert_eq!(rig.wait_for_end().left, [5]);
    assert!(matches!(worker.channel.try_receive::<Order>(), Ok(None)), "it is told nothing but that we are gone");
    assert!(!worker.is_killed());
}

fn ask(rig: &Rig, question: &str) -> Vec<u8> {
    let mut client = UnixStream::connect(rig.directory.path().join(control::SOCKET)).unwrap();
    client.write_all(question.as_bytes()).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    answer
}

/// Serves the control socket on a thread that ends with the test's process.
fn open_control_socket(rig: &Rig) {
    let (directory, requests) = (rig.directory.path().to_owned(), rig.requests.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { control::serve(control::listen(&directory).unwrap(), requests, false).await });
    });
    wait_until(|| UnixStream::connect(rig.directory.path().join(control::SOCKET)).is_ok());
}

#[test]
fn a_listing_has_what_the_broker_knows_and_what_the_worker_counts() {
    let (rig, workers) = Rig::start();
    open_control_socket(&rig);
    let worker = serve_one(&rig, &workers, 5);
    let reporter = std::thread::spawn(move || {
        assert_eq!(worker.order().0, Order::Report);
        let device =
            DeviceReport { id: disk_id(XVDA), state: "driver-ok".into(), counters: vec![Counter::new("requests", 12)] };
        let foreign = DeviceReport { id: disk_id(99), ..device.clone() };
        worker.say(&Answer::Report(Report {
            alive: true,
            counters: vec![Counter::new("traps", 3)],
            devices: vec![device, foreign],
        }));
        worker
    });

    let listing: Listing = serde_json::from_slice(&ask(&rig, "\"list\"\n")).unwrap();

    let _worker = reporter.join().unwrap();
    let [guest] = &*listing.guests else { panic!("{listing:?}") };
    let [disk] = &*guest.devices else { panic!("{guest:?}") };
    assert_eq!((guest.domid, guest.name.as_deref(), guest.counters["traps"]), (5, Some("guest-5"), 3));
    assert_eq!(
        (disk.name.as_deref(), disk.state.as_str(), disk.driver.as_deref()),
        (Some("xvda"), "serving", Some("driver-ok"))
    );
    assert_eq!((disk.base, disk.irq, disk.counters["requests"]), (Some(0x200_0000), Some(33), 12));
}

#[test]
fn a_listing_does_not_wait_for_a_worker_that_says_nothing() {
    let (rig, workers) = Rig::start();
    open_control_socket(&rig);
    let _silent = serve_one(&rig, &workers, 5);

    let listing: Listing = serde_json::from_slice(&ask(&rig, "\"list\"\n")).unwrap();

    let [guest] = &*listing.guests else { panic!("{listing:?}") };
    assert!(guest.counters.is_empty() && guest.devices.len() == 1);
}

#[test]
fn a_question_that_makes_no_sense_gets_an_error_and_the_next_an_answer() {
    let (rig, _workers) = Rig::start();
    open_control_socket(&rig);

    for question in ["\n", "\"lost\"\n", "{\"list\":1}\n"] {
        assert!(String::from_utf8(ask(&rig, question)).unwrap().contains("error"), "{question}");
    }
    let endless = format!("{}\n", "x".repeat(4095));
    assert!(String::from_utf8(ask(&rig, &endless)).unwrap().contains("error"));
    assert!(String::from_utf8(ask(&rig, "\"list\"\n")).unwrap().contains("\"guests\":[]"));
}
