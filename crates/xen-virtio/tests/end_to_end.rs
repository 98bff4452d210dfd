//! From the toolstack's nodes to the bytes in an image: the broker, a worker's own code and a guest with the drivers of
//! `virtio_drivers`. Only the process boundary, xenstored and Xen are played.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod rig;

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rig::domain::{BASE_A, BASE_B, DRIVERS_BYTES, Domain, RAM};
use rig::manager::Manager;
use rig::{Rig, XVDA, XVDB, wait_until};
use rustix::io::Errno;
use testkit::xen::{DmOp, FakeChannels, STATE_READY};
use tokio::sync::oneshot;
use virtio_drivers::device::blk::SECTOR_SIZE;
use xen_virtio::broker::worker::{Spawned, Spawner};
use xen_virtio::broker::{CLOSING_PATIENCE, Request};
use xen_virtio::channel::Channel;
use xen_virtio::door::Door;
use xen_virtio::logging::HeldBack;
use xen_virtio::protocol::{Counter, Former};
use xen_virtio::worker;

/// Runs workers as threads of the test's process. All guests share one domain's Xen.
#[derive(Clone)]
struct ThreadSpawner {
    domain: Domain,
    /// The event channels of the worker that was started last.
    last: Arc<Mutex<Option<Arc<FakeChannels>>>>,
}

impl ThreadSpawner {
    fn of(domain: &Domain) -> Self {
        Self { domain: domain.clone(), last: Arc::default() }
    }

    /// Stops the last worker as a process that is killed stops. (Its threads are there still, and do nothing.)
    fn kill_the_last(&self) {
        self.last.lock().unwrap().take().unwrap().kill();
    }
}

impl Spawner for ThreadSpawner {
    fn spawn(&self, domid: u16, former: Option<Former>) -> anyhow::Result<Spawned> {
        let (channel, there) = Channel::pair()?;
        let (end, ended) = oneshot::channel();
        let (kill, _killed) = oneshot::channel();
        let domain = self.domain.clone();
        let (hypervisor, channels) = (domain.xen.hypervisor(), domain.xen.channels());
        *self.last.lock().unwrap() = Some(Arc::clone(&channels));
        // At which nobody knocks.
        let door = Door::make(tempfile::tempdir()?.path(), domid)?;
        thread::spawn(move || {
            let served = worker::serve(there, hypervisor, channels, domain, former, door, HeldBack::default());
            // The broker may have ended.
            let _ = end.send(served.map_or_else(|error| format!("{error:#}"), |()| "exit status: 0".to_owned()));
        });
        Ok(Spawned { channel, kill, ended: Box::pin(async { ended.await.unwrap() }) })
    }

    fn open_gntdev(&self) -> anyhow::Result<OwnedFd> {
        Ok(std::fs::File::open("/dev/null")?.into())
    }

    fn vcpus(&self, _domid: u16) -> Option<u16> {
        Some(2)
    }

    fn has_domain(&self, _domid: u16) -> bool {
        true
    }
}

fn start(domain: &Domain) -> Rig {
    Rig::start_with(ThreadSpawner::of(domain), CLOSING_PATIENCE, |_| {})
}

fn create(rig: &Rig, number: u32, name: &str) -> std::path::PathBuf {
    let image = rig.image(name, 1 << 20);
    rig.create_disk(5, number, &image);
    image
}

fn destroy(rig: &Rig, numbers: &[u32]) {
    numbers.iter().for_each(|number| rig.close_disk(5, *number));
    numbers.iter().for_each(|number| rig.wait_for_state(5, *number, "6"));
}

#[test]
fn a_disk_by_grants_maps_nothing_of_the_guest_beside_what_it_grants() {
    let domain = Domain::new();
    domain.boot_with_grants();
    let rig = start(&domain);
    rig.set(&rig::node(5, XVDA, "grant_usage"), "1");
    let image = create(&rig, XVDA, "disk.img");
    rig.wait_for_state(5, XVDA, "2");

    let mut disk = domain.disk(BASE_A);
    disk.write_blocks(7, &[0x5a; SECTOR_SIZE]).unwrap();
    let mut data = [0; SECTOR_SIZE];
    disk.read_blocks(7, &mut data).unwrap();
    drop(disk);

    assert_eq!((data, sector_of(&image, 7)), ([0x5a; SECTOR_SIZE], [0x5a; SECTOR_SIZE]));
    assert_eq!(domain.memory.counts().calls, 0, "no foreign mapping");
    destroy(&rig, &[XVDA]);
}

fn sector_of(image: &Path, sector: u64) -> [u8; SECTOR_SIZE] {
    let mut data = [0; SECTOR_SIZE];
    std::fs::File::open(image).unwrap().read_exact_at(&mut data, sector * SECTOR_SIZE as u64).unwrap();
    data
}

#[test]
fn a_guest_reads_and_writes_its_disk_and_leaves_nothing_behind() {
    let domain = Domain::new();
    let rig = start(&domain);
    let image = rig.image("disk.img", 1 << 20);
    std::fs::File::options().write(true).open(&image).unwrap().write_all_at(&[0xa5; 4096], 4096).unwrap();
    rig.create_disk(5, XVDA, &image);
    rig.wait_for_state(5, XVDA, "2");

    let read = domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        assert_eq!(disk.capacity(), 2048);
        disk.write_blocks(100, &[0x5a; 2 * SECTOR_SIZE]).unwrap();
        disk.flush().unwrap();
        let mut read = [0; SECTOR_SIZE];
        disk.read_blocks(8, &mut read).unwrap();
        read
    });
    destroy(&rig, &[XVDA]);

    assert_eq!(read, [0xa5; SECTOR_SIZE]);
    assert_eq!(sector_of(&image, 101), [0x5a; SECTOR_SIZE]);
    assert!(domain.xen.irq(33) > 0, "interrupts come by the line that libxl gave");
    assert!(domain.is_forgotten());
}

#[test]
fn two_disks_of_a_guest_are_two_disks_behind_one_server() {
    let domain = Domain::new();
    let rig = start(&domain);
    let (first, second) = (create(&rig, XVDA, "a.img"), create(&rig, XVDB, "b.img"));
    rig.wait_for_state(5, XVDA, "2");
    rig.wait_for_state(5, XVDB, "2");

    domain.run(|domain| {
        domain.disk(BASE_A).write_blocks(0, &[1; SECTOR_SIZE]).unwrap();
        domain.disk(BASE_B).write_blocks(0, &[2; SECTOR_SIZE]).unwrap();
    });
    let servers = domain.xen.servers().len();
    destroy(&rig, &[XVDA, XVDB]);

    assert_eq!((sector_of(&first, 0)[0], sector_of(&second, 0)[0], servers), (1, 2, 1));
    assert!(domain.is_forgotten());
}

#[test]
fn a_disk_that_is_taken_away_leaves_the_other_working() {
    let domain = Domain::new();
    let rig = start(&domain);
    create(&rig, XVDA, "a.img");
    let second = create(&rig, XVDB, "b.img");
    rig.wait_for_state(5, XVDA, "2");
    rig.wait_for_state(5, XVDB, "2");

    domain.run(|domain| {
        let first = domain.disk(BASE_A);
        let mut disk = domain.disk(BASE_B);
        disk.write_blocks(0, &[1; SECTOR_SIZE]).unwrap();
        destroy(&rig, &[XVDA]);
        disk.write_blocks(0, &[2; SECTOR_SIZE]).unwrap();
        // Its drop would reset a device that is gone.
        std::mem::forget(first);
    });

    assert_eq!(sector_of(&second, 0), [2; SECTOR_SIZE]);
    destroy(&rig, &[XVDB]);
    assert!(domain.is_forgotten());
}

#[test]
fn b04_pages_that_are_ballooned_out_are_given_back_while_the_disk_idles() {
    let domain = Domain::new();
    let rig = start(&domain);
    let image = create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");

    domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        disk.write_blocks(0, &[1; SECTOR_SIZE]).unwrap();
        let mapped = domain.memory.counts().live;
        domain.memory.balloon_out(RAM + DRIVERS_BYTES, 16);
        domain.xen.vcpu(0).invalidate().unwrap();

        wait_until(|| domain.memory.counts().live == 0);
        disk.write_blocks(1, &[2; SECTOR_SIZE]).unwrap();
        assert!(mapped > 0);
    });

    assert_eq!((sector_of(&image, 0)[0], sector_of(&image, 1)[0]), (1, 2));
}

#[test]
fn a03_invalidations_in_the_middle_of_io_neither_disturb_it_nor_wait_for_it() {
    let domain = Domain::new();
    let rig = start(&domain);
    create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");

    let invalidations = domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        let (other, done) = (domain.xen.vcpu(1), AtomicBool::new(false));
        thread::scope(|scope| {
            let balloons = scope.spawn(|| {
                let invalidate = |_: &u64| !done.load(Ordering::Relaxed) && other.invalidate().is_ok();
                (0..).take_while(invalidate).count()
            });
            for round in 0..=255 {
                let mut read = [0; SECTOR_SIZE];
                disk.write_blocks(usize::from(round), &[round; SECTOR_SIZE]).unwrap();
                disk.read_blocks(usize::from(round), &mut read).unwrap();
                assert_eq!(read, [round; SECTOR_SIZE]);
            }
            done.store(true, Ordering::Relaxed);
            balloons.join().unwrap()
        })
    });
    destroy(&rig, &[XVDA]);

    assert!(invalidations > 0);
    assert!(domain.is_forgotten());
}

#[test]
fn a_worker_reports_what_the_guest_did() {
    let domain = Domain::new();
    let rig = start(&domain);
    create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");
    domain.run(|domain| domain.disk(BASE_A).write_blocks(0, &[1; SECTOR_SIZE]).unwrap());

    let (reply, views) = oneshot::channel();
    rig.request(Request::List(reply));
    let (view, report) = views.blocking_recv().unwrap().pop().unwrap();
    let report = report.blocking_recv().unwrap();

    let counted = |counters: &[Counter], name: &str| counters.iter().find(|counter| counter.0 == name).unwrap().1;
    let [disk] = &*report.devices else { panic!("{report:?}") };
    assert_eq!((view.domid, disk.id, counted(&disk.counters, "requests")), (5, rig::disk_id(XVDA), 1));
    assert!(counted(&report.counters, "traps") > 10);
    assert!(counted(&report.counters, "cache_pages_mapped") > 0);
    assert_eq!(counted(&report.counters, "log_lines_held_back"), 0);
}

#[test]
fn windows_that_overlap_fail_the_later_creation_only() {
    let domain = Domain::new();
    let rig = start(&domain);
    let image = create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");
    rig.write_disk(5, XVDB, &rig.image("b.img", 1 << 20));
    rig.set(&rig::node(5, XVDB, "base"), &BASE_A.to_string());
    rig.set(&rig::node(5, XVDB, "state"), "1");

    let reason = rig.wait_for_refusal(5, XVDB);
    domain.run(|domain| domain.disk(BASE_A).write_blocks(0, &[1; SECTOR_SIZE]).unwrap());

    assert!(reason.contains("overlaps"), "{reason}");
    assert_eq!(sector_of(&image, 0), [1; SECTOR_SIZE]);
}

#[test]
fn a_guest_that_xens_policy_keeps_from_us_fails_alone() {
    let domain = Domain::new();
    domain.xen.fail_next(DmOp::CreateServer, Errno::ACCESS);
    let rig = start(&domain);
    create(&rig, XVDA, "denied.img");
    let reason = rig.wait_for_refusal(5, XVDA);

    rig.create_disk(6, XVDA, &rig.image("allowed.img", 1 << 20));
    rig.wait_for_state(6, XVDA, "2");

    assert!(reason.contains("Cannot create an IOREQ server"), "{reason}");
}

#[test]
fn a_xen_without_ioreq_servers_fails_the_creation_with_the_reason() {
    let domain = Domain::new();
    let rig = start(&domain);
    domain.xen.fail_next(DmOp::CreateServer, Errno::OPNOTSUPP);
    create(&rig, XVDA, "a.img");

    let reason = rig.wait_for_refusal(5, XVDA);

    assert!(reason.contains("create an IOREQ server"), "{reason}");
    create(&rig, XVDB, "b.img");
    rig.wait_for_state(5, XVDB, "2");
}

#[test]
fn h01_a_guest_that_dies_without_a_word_leaves_nothing_mapped() {
    let domain = Domain::new();
    let rig = start(&domain);
    create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");
    domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        disk.write_blocks(0, &[7; SECTOR_SIZE]).unwrap();
        // Its drop would reset the device of a guest that is dead.
        std::mem::forget(disk);
    });

    domain.xen.kill_guest();
    rig.xenstored.release_domain(5);

    wait_until(|| domain.memory.counts().live == 0);
    destroy(&rig, &[XVDA]);
}

#[test]
fn a_guest_outlives_the_broker_and_its_worker_does_not_outlive_the_guest() {
    let domain = Domain::new();
    let rig = start(&domain);
    let image = create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");
    rig.request(Request::Stop);

    domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        disk.write_blocks(0, &[7; SECTOR_SIZE]).unwrap();
        // Its drop would reset the device of a guest that is dead.
        std::mem::forget(disk);
        domain.xen.kill_guest();
    });

    assert_eq!(sector_of(&image, 0), [7; SECTOR_SIZE]);
    wait_until(|| domain.memory.counts().live == 0);
}

#[test]
fn a_guest_whose_worker_and_broker_end_at_once_is_answered_by_the_next_ones_however_often() {
    let domain = Domain::new();
    let workers = ThreadSpawner::of(&domain);
    let mut rig = Rig::start_under_with(workers.clone(), Manager::start());
    let image = create(&rig, XVDA, "a.img");
    rig.wait_for_state(5, XVDA, "2");
    let server = domain.xen.servers().into_iter().next().unwrap();

    domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        for life in 1..=3_u8 {
            disk.write_blocks(usize::from(life), &[life; SECTOR_SIZE]).unwrap();
            workers.kill_the_last();
            rig.stop_broker();
            thread::scope(|scope| {
                scope.spawn(|| {
                    // There is nobody when the guest asks.
                    wait_until(|| domain.xen.slot(server, 0).get().0 == STATE_READY);
                    rig.start_another_with(workers.clone());
                });
                let mut read = [0; SECTOR_SIZE];
                disk.read_blocks(usize::from(life), &mut read).unwrap();
                assert_eq!(read, [life; SECTOR_SIZE]);
            });
        }
    });
    destroy(&rig, &[XVDA]);

    assert_eq!([1, 2, 3].map(|sector| sector_of(&image, sector)[0]), [1, 2, 3]);
    assert_eq!(domain.xen.take_violations(), <[String; 0]>::default());
    assert!(domain.xen.servers().is_empty());
    assert_eq!(rig.manager.as_ref().unwrap().names(), <[String; 0]>::default());
}
