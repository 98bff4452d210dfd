//! The broker in a domain that is not Dom0: it may read its own nodes and nothing of its guests, and is told of no end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod rig;

use std::os::fd::AsFd;

use rig::{Rig, XVDA, wait_until};
use rustix::fs::fstat;
use xen_virtio::model::{Grants, Model};
use xen_virtio::protocol::Answer;

const IMAGE_BYTES: u64 = 1 << 20;

/// Asks for a guest's disk, and gives its image.
fn create(rig: &Rig, domid: u16) {
    rig.create_disk(domid, XVDA, &rig.image(&format!("{domid}.img"), IMAGE_BYTES));
}

#[test]
fn a_guest_whose_name_cannot_be_read_is_served_until_its_toolstack_closes_it() {
    let (rig, workers) = Rig::start_in_driver_domain(|_| {});
    create(&rig, 5);

    let worker = workers.next();
    let device = worker.attach();
    rig.wait_for_state(5, XVDA, "2");
    rig.close_disk(5, XVDA);
    worker.detach(XVDA);
    worker.stop();
    rig.wait_for_state(5, XVDA, "6");

    assert_eq!((&*device.owner.guest, &*device.owner.identity), ("domain-5", "5"));
    // As `xl devd` does then.
    rig.xenstored.rm("/local/domain/3/backend/virtio_disk/5");
    create(&rig, 6);
    workers.next().attach();
    rig.wait_for_state(6, XVDA, "2");
}

#[test]
fn guests_that_were_there_before_are_served() {
    let (rig, workers) = Rig::start_in_driver_domain(|rig| create(rig, 5));

    workers.next().attach();

    rig.wait_for_state(5, XVDA, "2");
}

#[test]
fn guests_without_a_name_share_a_file_and_a_mistake_in_it_is_told() {
    let (rig, workers) = Rig::start_in_driver_domain(|_| {});
    let write = |text: &str| std::fs::write(rig.directory.path().join("default.toml"), text).unwrap();

    write("[[disk]]\nvdev = \"xvda\"\nserial = \"shared\"\n");
    create(&rig, 5);
    let device = workers.next().attach();
    write("[[disk]]\nvdev = \"xvda\"\nsreial = \"shared\"\n");
    create(&rig, 6);
    let reason = rig.wait_for_refusal(6, XVDA);

    let Model::Disk(disk) = device.model else { panic!("a disk") };
    assert_eq!(disk.serial, "shared");
    assert!(reason.contains("default.toml:3: Unknown field `sreial`"), "{reason}");
}

#[test]
fn a_guest_that_ended_unseen_is_noticed_by_its_worker_and_let_go_of() {
    let (rig, workers) = Rig::start_in_driver_domain(|_| {});
    create(&rig, 5);
    let worker = workers.next();
    worker.attach();
    rig.wait_for_state(5, XVDA, "2");

    rig.xenstored.release_domain(5);
    worker.report_the_guests_end();
    worker.detach(XVDA);
    worker.stop();

    // Whoever cleans up after it is answered.
    rig.close_disk(5, XVDA);
    rig.wait_for_state(5, XVDA, "6");
}

#[test]
fn a_directory_that_vanishes_before_its_device_is_closed_is_not_written_again() {
    let (rig, workers) = Rig::start_in_driver_domain(|_| {});
    create(&rig, 5);
    let worker = workers.next();
    worker.attach();
    rig.wait_for_state(5, XVDA, "2");

    // libxl has lost patience.
    rig.close_disk(5, XVDA);
    worker.told_to_detach(XVDA);
    rig.xenstored.rm("/local/domain/3/backend/virtio_disk/5");
    worker.say(&Answer::Detached { id: rig::disk_id(XVDA), used: true });
    worker.stop();
    wait_until(|| {
        rig.settle();
        rig.xenstored.transaction_count() == 0
    });

    assert_eq!(rig.text("/local/domain/3/backend/virtio_disk/5"), None);
}

#[test]
fn an_older_libxl_leaves_it_to_the_guest_to_use_grants_and_a_newer_one_says_it() {
    let (rig, workers) = Rig::start_in_driver_domain(|_| {});
    let null = fstat(std::fs::File::open("/dev/null").unwrap()).unwrap().st_rdev;
    for (domid, said, grants) in
        [(5, None, Grants::Allowed), (6, Some("0"), Grants::Never), (7, Some("1"), Grants::Only)]
    {
        if let Some(said) = said {
            rig.set(&rig.node(domid, XVDA, "grant_usage"), said);
        }
        create(&rig, domid);

        let (device, descriptors) = workers.next().told_to_attach();

        assert_eq!(device.grants, grants);
        let gntdevs = descriptors.iter().filter(|fd| fstat(fd.as_fd()).unwrap().st_rdev == null).count();
        assert_eq!((descriptors.len(), gntdevs), if grants == Grants::Never { (1, 0) } else { (2, 1) });
    }
}
