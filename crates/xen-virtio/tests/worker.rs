//! A worker's own code, by orders that the test gives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod rig;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ioreq::ServerId;
use rig::domain::{BASE_A, BASE_B, Domain};
use rig::{PATIENCE, XVDA, XVDB, disk_id, virtio_id};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send};
use tempfile::{NamedTempFile, TempDir};
use testkit::device::eventually;
use testkit::xen::{DmOp, FakeChannels, STATE_INPROCESS, STATE_READY, Vcpu};
use virtio_backend::{Operation, Owner, Record};
use virtio_drivers::device::blk::SECTOR_SIZE;
use virtio_drivers::device::socket::{VsockAddr, VsockEventType};
use xen_virtio::channel::Channel;
use xen_virtio::door::{self, Door};
use xen_virtio::logging::HeldBack;
use xen_virtio::model::{Device, Grants, Model, Place};
use xen_virtio::protocol::{Answer, Former, Order, Report, ReservedWindow, VERSION};
use xen_virtio::worker;

/// A worker that runs, and the broker's end of its channel.
struct Running {
    domain: Domain,
    events: Arc<FakeChannels>,
    channel: Channel,
    /// Where its door is.
    runtime: TempDir,
    thread: JoinHandle<anyhow::Result<()>>,
}

const DOMID: u16 = 7;

impl Running {
    fn start() -> Self {
        let running = Self::begin(Domain::new(), None);
        assert!(matches!(running.answer(), Answer::Created { .. }));
        assert_eq!(running.answer(), Answer::Started { version: VERSION });
        running
    }

    /// A worker that is told what one before it left.
    fn begin(domain: Domain, former: Option<Former>) -> Self {
        let (channel, there) = Channel::pair().unwrap();
        let (hypervisor, events, pages) = (domain.xen.hypervisor(), domain.xen.channels(), domain.clone());
        let here = Arc::clone(&events);
        let runtime = tempfile::tempdir().unwrap();
        let (door, held_back) = (Door::make(runtime.path(), DOMID).unwrap(), HeldBack::default());
        let thread = thread::spawn(move || worker::serve(there, hypervisor, here, pages, former, door, held_back));
        Self { domain, events, channel, runtime, thread }
    }

    /// Stops as a process that is killed does, and leaves its guest behind. (Its threads are there still, and do nothing.)
    fn die(self) -> Domain {
        self.events.kill();
        std::mem::forget(self.channel);
        self.domain
    }

    /// The worker that goes on where the one of this guest died that had, or was to have, these windows.
    fn follow(domain: Domain, windows: &[(u32, u64)]) -> Self {
        let running = Self::begin(domain.clone(), Some(former(&domain, windows)));
        let ServerId(server) = server_of(&domain);
        assert_eq!(running.answer(), Answer::Created { server });
        assert_eq!(running.answer(), Answer::Started { version: VERSION });
        running
    }

    fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Answer {
        self.channel.send(order, descriptors).unwrap();
        self.answer()
    }

    fn tell(&self, order: &Order) {
        self.channel.send(order, &[]).unwrap();
    }

    /// What it counts; and what it was told before is done.
    fn report(&self) -> Report {
        match self.order(&Order::Report, &[]) {
            Answer::Report(report) => report,
            other => panic!("it says {other:?}"),
        }
    }

    fn count(&self, name: &str) -> u64 {
        self.report().counters.iter().find(|counter| counter.0 == name).unwrap().1
    }

    fn answer(&self) -> Answer {
        self.answer_with_descriptors().0
    }

    fn answer_with_descriptors(&self) -> (Answer, Vec<OwnedFd>) {
        let timeout = Timespec::try_from(PATIENCE).unwrap();
        let ready = poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "the worker says nothing");
        self.channel.try_receive().unwrap().unwrap()
    }

    /// The same worker, after its broker has ended and the next one has knocked.
    fn with_another_broker(self) -> Self {
        let Self { domain, events, channel, runtime, thread } = self;
        drop(channel);
        let channel = door::knock(runtime.path(), DOMID).unwrap().expect("somebody lives there");
        Self { domain, events, channel, runtime, thread }
    }

    fn attach(&self, number: u32, base: u64, descriptors: &[BorrowedFd<'_>]) -> Answer {
        self.attach_by(Grants::Never, number, base, descriptors)
    }

    fn attach_by(&self, grants: Grants, number: u32, base: u64, descriptors: &[BorrowedFd<'_>]) -> Answer {
        self.attach_again(grants, number, base, descriptors, &Record::new().unwrap())
    }

    /// With what a worker before may have left in its record.
    fn attach_again(
        &self,
        grants: Grants,
        number: u32,
        base: u64,
        descriptors: &[BorrowedFd<'_>],
        record: &Record,
    ) -> Answer {
        let descriptors = &[descriptors, &[record.as_fd()]].concat();
        let (owner, place) = (owner(), place(base));
        let model = Model::Disk(virtio_disk::Config::default());
        let device = Device { id: disk_id(number), place, grants, name: format!("disk-{number}"), owner, model };
        self.order(&Order::Attach { device: Box::new(device) }, descriptors)
    }

    fn end(self) -> anyhow::Result<()> {
        drop(self.channel);
        self.thread.join().unwrap()
    }
}

/// The one IOREQ server of a guest.
fn server_of(domain: &Domain) -> ServerId {
    domain.xen.servers().into_iter().next().unwrap()
}

fn owner() -> Owner {
    Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/run".into() }
}

fn place(base: u64) -> Place {
    Place { base, irq: 33 }
}

fn former(domain: &Domain, windows: &[(u32, u64)]) -> Former {
    let window = |&(number, base): &(u32, u64)| ReservedWindow { id: disk_id(number), place: place(base) };
    Former { server: server_of(domain).0, windows: windows.iter().map(window).collect() }
}

fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    image
}

fn reason(answer: Answer) -> String {
    match answer {
        Answer::Refused { reason, .. } => reason,
        other => panic!("it says {other:?}"),
    }
}

#[test]
fn a_device_without_what_its_model_needs_is_refused() {
    let worker = Running::start();
    let image = image();
    let pipe = rustix::pipe::pipe().unwrap().0;

    let none = reason(worker.attach(XVDA, BASE_A, &[]));
    let two = reason(worker.attach(XVDA, BASE_A, &[image.as_fd(), image.as_fd()]));
    let odd = reason(worker.attach(XVDA, BASE_A, &[pipe.as_fd()]));

    assert!(none.contains("0 descriptors") && two.contains("2 descriptors"), "{none}; {two}");
    assert!(odd.contains("regular file or a block device"), "{odd}");
    assert_eq!(worker.attach(XVDA, BASE_A, &[image.as_fd()]), Answer::Attached { id: disk_id(XVDA) });
}

#[test]
fn a_device_by_grants_needs_the_way_to_them_and_is_told_so() {
    let worker = Running::start();
    let (image, gntdev) = (image(), std::fs::File::open("/dev/null").unwrap());

    let nothing = reason(worker.attach_by(Grants::Only, XVDA, BASE_A, &[]));
    let no_image = reason(worker.attach_by(Grants::Only, XVDA, BASE_A, &[gntdev.as_fd()]));
    let no_way = reason(worker.attach_by(Grants::Allowed, XVDA, BASE_A, &[image.as_fd(), gntdev.as_fd()]));

    assert!(nothing.contains("No way to the guest's grants"), "{nothing}");
    assert!(no_image.contains("0 descriptors"), "{no_image}");
    assert!(no_way.contains("The guest grants nothing"), "{no_way}");
    assert_eq!(worker.attach(XVDA, BASE_A, &[image.as_fd()]), Answer::Attached { id: disk_id(XVDA) });
}

#[test]
fn what_is_reached_by_grants_is_counted_as_such_and_no_frame_is_mapped() {
    let worker = Running::start();
    let (image, gntdev) = (image(), std::fs::File::open("/dev/null").unwrap());
    worker.domain.boot_with_grants();
    worker.attach_by(Grants::Only, XVDA, BASE_A, &[image.as_fd(), gntdev.as_fd()]);

    worker.domain.disk(BASE_A).write_blocks(0, &[3; SECTOR_SIZE]).unwrap();

    assert_eq!(std::fs::read(image.path()).unwrap()[0], 3);
    assert!(worker.count("grant_maps") > 0 && worker.count("grant_copies") > 0);
    assert_eq!(worker.count("cache_map_calls"), 0);
}

/// A worker with a disk that uses grants alone, and a vCPU of its guest whose driver has taken these features beside
/// VIRTIO_F_VERSION_1; and Status after that.
fn start_with_grants_only(features: u32) -> (Running, Vcpu, u32) {
    let worker = Running::start();
    let (image, gntdev) = (image(), std::fs::File::open("/dev/null").unwrap());
    worker.domain.boot_with_grants();
    worker.attach_by(Grants::Only, XVDA, BASE_A, &[image.as_fd(), gntdev.as_fd()]);
    let vcpu = worker.domain.xen.vcpu(0);
    for (register, value) in [
        (STATUS, ACKNOWLEDGE | DRIVER),
        (DRIVER_FEATURES_SEL, 1),
        (DRIVER_FEATURES, VERSION_1 | features),
        (STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    ] {
        vcpu.write32(BASE_A + register, value);
    }
    let status = vcpu.read32(BASE_A + STATUS);
    (worker, vcpu, status)
}

#[test]
fn a_driver_that_would_name_plain_addresses_is_not_accepted_where_only_grants_are_believed() {
    let (worker, _, status) = start_with_grants_only(0);

    assert_eq!(status & FEATURES_OK, 0);
    assert_eq!(worker.domain.memory.counts().calls, 0);
}

#[test]
fn b12_a_driver_that_promises_grants_and_names_plain_addresses_loses_its_device_and_nothing_is_mapped() {
    let (worker, vcpu, status) = start_with_grants_only(ACCESS_PLATFORM);
    for (register, value) in [
        (QUEUE_SEL, 0),
        (QUEUE_NUM, 8),
        (QUEUE_DESC_LOW, LOW_RAM),
        (QUEUE_DRIVER_LOW, LOW_RAM + 0x1000),
        (QUEUE_DEVICE_LOW, LOW_RAM + 0x2000),
        (QUEUE_READY, 1),
        (STATUS, status | DRIVER_OK),
        (QUEUE_NOTIFY, 0),
    ] {
        vcpu.write32(BASE_A + register, value);
    }

    rig::wait_until(|| vcpu.read32(BASE_A + STATUS) & DEVICE_NEEDS_RESET != 0);

    assert_ne!(status & FEATURES_OK, 0);
    assert_eq!(worker.domain.memory.counts().calls, 0);
}

#[test]
fn a_device_that_is_attached_twice_is_refused_and_the_first_goes_on() {
    let worker = Running::start();
    let (first, second) = (image(), image());
    worker.attach(XVDA, BASE_A, &[first.as_fd()]);

    let twice = reason(worker.attach(XVDA, BASE_B, &[second.as_fd()]));
    worker.domain.run(|domain| domain.disk(BASE_A).write_blocks(0, &[3; SECTOR_SIZE]).unwrap());

    assert!(twice.contains("served already"), "{twice}");
    assert_eq!(std::fs::read(first.path()).unwrap()[0], 3);
}

#[test]
fn a_window_at_the_end_of_the_address_space_is_refused() {
    let worker = Running::start();
    let image = image();

    let refused = reason(worker.attach(XVDA, u64::MAX - 8, &[image.as_fd()]));

    assert!(refused.contains("no place"), "{refused}");
}

#[test]
fn a_device_that_is_not_there_is_detached_at_once() {
    let worker = Running::start();

    let answer = worker.order(&Order::Detach { id: disk_id(XVDB) }, &[]);

    assert_eq!(answer, Answer::Detached { id: disk_id(XVDB), used: true });
}

/// Offsets of registers (virtio 1.2 §4.2.2).
const MAGIC_VALUE: u64 = 0;
const DEVICE_ID: u64 = 8;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

/// Bits of Status (virtio 1.2 §2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const DEVICE_NEEDS_RESET: u32 = 64;

/// Features 32 and 33 (virtio 1.2 §6), in the upper half.
const VERSION_1: u32 = 1;
const ACCESS_PLATFORM: u32 = 2;

/// An address of the guest's memory, in the lower half.
const LOW_RAM: u32 = 0x4000_0000;

#[test]
fn a_guest_that_is_faster_than_its_device_waits_for_it() {
    let worker = Running::start();
    let image = image();
    worker.tell(&Order::Reserve { id: disk_id(XVDA), place: Place { base: BASE_A, irq: 33 } });
    worker.report();
    let vcpu = worker.domain.xen.vcpu(0);
    let early = thread::spawn(move || (vcpu.read32(BASE_A + MAGIC_VALUE), vcpu.read32(BASE_A + DEVICE_ID)));
    while worker.count("trap_reads") == 0 {
        thread::yield_now();
    }
    assert!(!early.is_finished());

    worker.attach(XVDA, BASE_A, &[image.as_fd()]);

    assert_eq!(early.join().unwrap(), (u32::from_le_bytes(*b"virt"), 2));
}

#[test]
fn a_device_that_never_comes_leaves_a_window_that_drivers_pass_by() {
    let worker = Running::start();
    let id = disk_id(XVDA);
    worker.tell(&Order::Reserve { id, place: Place { base: BASE_A, irq: 33 } });
    worker.report();
    let vcpu = worker.domain.xen.vcpu(0);
    let early = thread::spawn(move || (vcpu.read32(BASE_A + MAGIC_VALUE), vcpu.read32(BASE_A + DEVICE_ID)));

    worker.tell(&Order::Vacate { id });

    assert_eq!(early.join().unwrap(), (u32::from_le_bytes(*b"virt"), 0));
    assert_eq!(worker.order(&Order::Detach { id }, &[]), Answer::Detached { id, used: true });
}

#[test]
fn a_guest_that_never_touched_its_device_is_told_apart() {
    let worker = Running::start();
    let image = image();
    let id = disk_id(XVDA);
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);

    assert_eq!(worker.order(&Order::Detach { id }, &[]), Answer::Detached { id, used: false });
}

#[test]
fn what_an_operator_asks_is_answered_by_the_device() {
    let worker = Running::start();
    let image = image();
    let id = disk_id(XVDA);
    let order = Order::Operate { id, operation: Operation::Link { up: false } };
    let outcome = |answer| match answer {
        Answer::Operated { outcome, .. } => outcome.unwrap_err(),
        other => panic!("it says {other:?}"),
    };

    assert!(outcome(worker.order(&order, &[])).contains("no such device"));
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);
    assert!(outcome(worker.order(&order, &[])).contains("no cable"));
    let order = Order::Operate { id, operation: Operation::Resume };
    assert!(outcome(worker.order(&order, &[])).contains("never holds"));
}

#[test]
fn orders_that_no_broker_gives_cost_no_device() {
    let worker = Running::start();
    let image = image();
    let id = disk_id(XVDA);
    worker.tell(&Order::Reserve { id, place: place(BASE_A) });

    let twice = reason(worker.order(&Order::Reserve { id: disk_id(XVDB), place: place(BASE_A) }, &[]));
    worker.tell(&Order::Start { version: VERSION, domid: DOMID + 1, former: None });
    let no_record = reason(worker.order(&Order::GiveUp { id, place: place(BASE_A) }, &[]));
    worker.tell(&Order::Vacate { id: disk_id(XVDB) });

    assert!(twice.contains("overlaps"), "{twice}");
    assert!(no_record.contains("No record"), "{no_record}");
    assert_eq!(worker.attach(XVDA, BASE_A, &[image.as_fd()]), Answer::Attached { id });
    worker.tell(&Order::Vacate { id });
    worker.domain.run(|domain| domain.disk(BASE_A).write_blocks(0, &[3; SECTOR_SIZE]).unwrap());
    assert_eq!(std::fs::read(image.path()).unwrap()[0], 3);
}

#[test]
fn a_broker_that_does_not_listen_is_not_waited_for() {
    let worker = Running::start();
    let image = image();
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);

    rustix::net::shutdown(&worker.channel, Shutdown::Read).unwrap();
    worker.tell(&Order::Report);

    let worker = worker.with_another_broker();
    assert_eq!(worker.report().devices.len(), 1);
}

#[test]
fn where_a_guest_connects_to_the_broker_is_asked_and_its_answers_are_the_guests() {
    const PORT: u32 = 1234;
    let worker = Running::start();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sockets");
    let listener = UnixListener::bind(&socket).unwrap();
    let id = virtio_id(0);
    let model = Model::Vsock(virtio_vsock::Config { cid: 7, socket: Some(socket) });
    let device =
        Device { id, place: place(BASE_A), grants: Grants::Never, name: "vsock0".into(), owner: owner(), model };
    let attach = Order::Attach { device: Box::new(device) };
    let attached = worker.order(&attach, &[listener.as_fd(), Record::new().unwrap().as_fd()]);
    assert_eq!(attached, Answer::Attached { id });

    let domain = worker.domain.clone();
    let guest = thread::spawn(move || {
        domain.run(|domain| {
            let host = VsockAddr { cid: 2, port: PORT };
            let mut sockets = domain.sockets(BASE_A);
            sockets.connect(host, 77).unwrap();
            let mut connected = || sockets.poll().unwrap().map(|event| event.event_type);
            eventually("the guest hears of its connection", || connected() == Some(VsockEventType::Connected));
            sockets.send(host, 77, b"from the guest").unwrap();
        });
    });
    let ticket = match worker.answer() {
        Answer::Reach { id: asks, ticket, number: PORT } if asks == id => ticket,
        other => panic!("it says {other:?}"),
    };
    let (mut host, connection) = UnixStream::pair().unwrap();
    connection.set_nonblocking(true).unwrap();
    // An answer to nothing that was asked, before the right one.
    for ticket in [ticket + 1, ticket] {
        let reached = Order::Reached { id, ticket, outcome: Ok(()) };
        worker.channel.send(&reached, &[connection.as_fd()]).unwrap();
    }

    let mut bytes = [0; 14];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    guest.join().unwrap();
}

#[test]
fn e13_a_disk_has_the_size_of_its_image_when_the_operator_says_so() {
    let worker = Running::start();
    let image = image();
    let id = disk_id(XVDA);
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);
    let vcpu = worker.domain.xen.vcpu(0);
    let state = || (vcpu.read32(BASE_A + CONFIG), vcpu.read32(BASE_A + CONFIG_GENERATION));
    let resize = |shrink| {
        let order = Order::Operate { id, operation: Operation::Resize { shrink } };
        match worker.order(&order, &[]) {
            Answer::Operated { outcome, .. } => outcome,
            other => panic!("it says {other:?}"),
        }
    };

    image.as_file().set_len(2 << 20).unwrap();
    assert_eq!(state(), (2048, 0), "nobody has said anything");
    resize(false).unwrap();
    assert_eq!(state(), (4096, 1));

    image.as_file().set_len(1 << 20).unwrap();
    assert!(resize(false).unwrap_err().contains("--shrink"));
    assert_eq!(state(), (4096, 1));
    resize(true).unwrap();
    resize(false).unwrap();
    assert_eq!(state(), (2048, 2), "once for a change");
}

#[test]
fn e14_an_image_is_locked_until_its_device_is_detached() {
    let worker = Running::start();
    let (file, id) = (image(), disk_id(XVDA));
    let open = || virtio_disk::Image::open(file.path(), virtio_disk::Access::default());
    let image = open().unwrap().into_file();
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);
    drop(image);
    worker.domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        disk.write_blocks(0, &[3; SECTOR_SIZE]).unwrap();
        drop(disk);
        domain.xen.vcpu(0).write32(BASE_A + STATUS, 0);
        domain.disk(BASE_A).write_blocks(1, &[3; SECTOR_SIZE]).unwrap();
    });
    assert!(open().unwrap_err().to_string().contains("in use"), "through a reset, too");

    assert_eq!(worker.order(&Order::Detach { id }, &[]), Answer::Detached { id, used: true });

    open().unwrap();
}

#[test]
fn a_guest_that_goes_on_without_its_device_finds_none_and_can_be_given_it_again() {
    let worker = Running::start();
    let image = image();
    let id = disk_id(XVDA);
    for _ in 0..2 {
        worker.attach(XVDA, BASE_A, &[image.as_fd()]);
        worker.domain.run(|domain| domain.disk(BASE_A).write_blocks(0, &[3; SECTOR_SIZE]).unwrap());

        assert_eq!(worker.order(&Order::Detach { id }, &[]), Answer::Detached { id, used: true });

        let vcpu = worker.domain.xen.vcpu(0);
        vcpu.write32(BASE_A + QUEUE_NOTIFY, 0);
        vcpu.write32(BASE_A + STATUS, 0);
        let registers = [MAGIC_VALUE, DEVICE_ID, STATUS, CONFIG].map(|register| vcpu.read32(BASE_A + register));
        assert_eq!(registers, [u32::from_le_bytes(*b"virt"), 0, 0, 0]);
        assert_eq!(worker.domain.memory.counts().live, 0);
    }
    // Elsewhere, too.
    let place = Place { base: BASE_B, irq: 34 };
    worker.tell(&Order::Reserve { id, place });
    worker.attach(XVDA, BASE_B, &[image.as_fd()]);
    assert_eq!(worker.domain.xen.vcpu(0).read32(BASE_B + DEVICE_ID), 2);
}

#[test]
fn a_worker_that_is_told_to_stop_takes_its_devices_along() {
    let worker = Running::start();
    let image = image();
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);
    worker.domain.run(|domain| domain.disk(BASE_A).write_blocks(0, &[3; SECTOR_SIZE]).unwrap());
    let domain = worker.domain.clone();

    worker.channel.send(&Order::Stop, &[]).unwrap();

    worker.end().unwrap();
    assert!(domain.is_forgotten());
}

#[test]
fn a_worker_whose_broker_goes_before_it_has_a_device_ends() {
    let worker = Running::start();
    let domain = worker.domain.clone();

    worker.end().unwrap();

    assert!(domain.is_forgotten());
}

#[test]
fn a_broker_that_talks_nonsense_is_taken_for_gone_and_the_guest_served() {
    let worker = Running::start();
    let image = image();
    worker.attach(XVDA, BASE_A, &[image.as_fd()]);
    send(&worker.channel, b"{\"detach\":[]}", SendFlags::empty()).unwrap();

    worker.domain.run(|domain| {
        let mut disk = domain.disk(BASE_A);
        disk.write_blocks(0, &[3; SECTOR_SIZE]).unwrap();
        // Its drop would reset the device of a guest that is dead.
        std::mem::forget(disk);
    });
    let domain = worker.domain.clone();
    domain.xen.kill_guest();

    worker.end().unwrap();
    assert_eq!(std::fs::read(image.path()).unwrap()[0], 3);
    assert_eq!(domain.memory.counts().live, 0);
}

/// Waits until a vCPU's slot in the guest's server is in this state.
fn wait_for_slot(domain: &Domain, vcpu: usize, state: u8) {
    let server = server_of(domain);
    rig::wait_until(|| domain.xen.slot(server, vcpu).get().0 == state);
}

#[test]
fn a_guest_whose_worker_is_killed_goes_on_with_the_next_and_its_driver_notices_nothing() {
    let first = Running::start();
    let (image, record) = (image(), Record::new().unwrap());
    first.attach_again(Grants::Never, XVDA, BASE_A, &[image.as_fd()], &record);
    let guest = first.domain.clone();
    let worker = guest.run(|domain| {
        let (mut worker, mut disk) = (first, domain.disk(BASE_A));
        for life in 0..10_u8 {
            let block = usize::from(life);
            disk.write_blocks(block, &[life; SECTOR_SIZE]).unwrap();
            worker = Running::follow(worker.die(), &[(XVDA, BASE_A)]);
            let attached = worker.attach_again(Grants::Never, XVDA, BASE_A, &[image.as_fd()], &record);
            assert_eq!(attached, Answer::Attached { id: disk_id(XVDA) });
            let mut read = [0xff; SECTOR_SIZE];
            disk.read_blocks(block, &mut read).unwrap();
            assert_eq!(read, [life; SECTOR_SIZE]);
        }
        worker
    });
    assert_eq!(worker.domain.xen.take_violations(), <[String; 0]>::default());
    // The end is that of any other worker.
    worker.tell(&Order::Stop);
    worker.end().unwrap();
    assert!(guest.xen.servers().is_empty());
}

#[test]
fn what_a_killed_worker_had_taken_or_not_seen_yet_is_answered_by_the_next() {
    let worker = Running::start();
    let (first, second, record) = (image(), image(), Record::new().unwrap());
    worker.attach_again(Grants::Never, XVDA, BASE_A, &[first.as_fd()], &record);
    worker.tell(&Order::Reserve { id: disk_id(XVDB), place: place(BASE_B) });
    worker.report();
    let read_id = |vcpu: Vcpu, base| thread::spawn(move || vcpu.read32(base + DEVICE_ID));
    let taken = read_id(worker.domain.xen.vcpu(1), BASE_B);
    wait_for_slot(&worker.domain, 1, STATE_INPROCESS);
    let domain = worker.die();
    let unseen = read_id(domain.xen.vcpu(0), BASE_A);
    wait_for_slot(&domain, 0, STATE_READY);

    let next = Running::follow(domain, &[(XVDA, BASE_A), (XVDB, BASE_B)]);
    wait_for_slot(&next.domain, 0, STATE_INPROCESS);
    assert!(!taken.is_finished() && !unseen.is_finished(), "both wait for their device");
    next.attach_again(Grants::Never, XVDA, BASE_A, &[first.as_fd()], &record);
    assert_eq!(unseen.join().unwrap(), 2);
    next.attach(XVDB, BASE_B, &[second.as_fd()]);
    assert_eq!(taken.join().unwrap(), 2);
    assert_eq!(next.domain.xen.take_violations(), <[String; 0]>::default());
}

#[test]
fn a_window_that_a_killed_worker_had_not_come_to_is_there_in_the_next() {
    let domain = Running::start().die();
    let server = server_of(&domain);
    assert!(domain.xen.windows(server).is_empty());

    let next = Running::follow(domain, &[(XVDA, BASE_A)]);
    let vcpu = next.domain.xen.vcpu(0);
    let early = thread::spawn(move || vcpu.read32(BASE_A + DEVICE_ID));
    wait_for_slot(&next.domain, 0, STATE_INPROCESS);
    next.tell(&Order::Vacate { id: disk_id(XVDA) });

    assert_eq!(early.join().unwrap(), 0);
}

#[test]
fn a_guest_that_ended_meanwhile_is_reported_as_such() {
    let domain = Running::start().die();
    let left = former(&domain, &[(XVDA, BASE_A)]);
    domain.xen.kill_guest();

    let next = Running::begin(domain, Some(left));

    assert_eq!(next.answer(), Answer::Report(Report::default()));
    next.end().unwrap();
}

#[test]
fn what_cannot_be_taken_over_is_told_and_left_as_it_was_for_the_next() {
    let worker = Running::start();
    let (image, record) = (image(), Record::new().unwrap());
    worker.attach_again(Grants::Never, XVDA, BASE_A, &[image.as_fd()], &record);
    let domain = worker.die();
    let server = server_of(&domain);
    let vcpu = domain.xen.vcpu(0);
    let waiting = thread::spawn(move || vcpu.read32(BASE_A + DEVICE_ID));
    wait_for_slot(&domain, 0, STATE_READY);

    for (call, errno) in [(DmOp::MapPage, Errno::PERM), (DmOp::MapWindow, Errno::NOSPC)] {
        domain.xen.fail_next(call, errno);
        let next = Running::begin(domain.clone(), Some(former(&domain, &[(XVDA, BASE_A)])));
        match next.answer() {
            Answer::Unable { reason } => assert!(reason.contains("Cannot go on where"), "{reason}"),
            other => panic!("it says {other:?}"),
        }
        assert!(next.end().is_err());
        assert_eq!(domain.xen.windows(server).len(), 1);
        assert!(domain.xen.is_enabled(server));
    }

    let next = Running::follow(domain, &[(XVDA, BASE_A)]);
    next.attach_again(Grants::Never, XVDA, BASE_A, &[image.as_fd()], &record);
    assert_eq!(waiting.join().unwrap(), 2);
}

#[test]
fn a_device_that_is_given_up_answers_and_says_that_it_is_broken() {
    let worker = Running::start();
    let (image, record) = (image(), Record::new().unwrap());
    worker.attach_again(Grants::Never, XVDA, BASE_A, &[image.as_fd()], &record);
    let guest = worker.domain.clone();
    let disk = guest.run(|domain| domain.disk(BASE_A));
    let next = Running::follow(worker.die(), &[(XVDA, BASE_A)]);

    next.channel.send(&Order::GiveUp { id: disk_id(XVDA), place: place(BASE_A) }, &[record.as_fd()]).unwrap();

    let vcpu = next.domain.xen.vcpu(0);
    assert_ne!(vcpu.read32(BASE_A + STATUS) & DEVICE_NEEDS_RESET, 0);
    assert_eq!(vcpu.read32(BASE_A + DEVICE_ID), 2);
    drop(disk);
    assert_eq!(
        next.order(&Order::Detach { id: disk_id(XVDA) }, &[]),
        Answer::Detached { id: disk_id(XVDA), used: true }
    );
}

#[test]
fn a_worker_without_a_broker_hands_over_to_the_next_one_and_leaves_all_as_it_is() {
    let worker = Running::start();
    let (image, record) = (image(), Record::new().unwrap());
    worker.attach_again(Grants::Never, XVDA, BASE_A, &[image.as_fd()], &record);
    record.device().store(&"as it was left".to_owned()).unwrap();

    let worker = worker.with_another_broker();
    worker.tell(&Order::HandOver { version: VERSION });
    let (answer, descriptors) = worker.answer_with_descriptors();
    assert_eq!(answer, Answer::Holds { id: disk_id(XVDA) });
    let [file, handed_over] = <[_; 2]>::try_from(descriptors).unwrap();
    assert_eq!(fstat(file).unwrap().st_ino, fstat(&image).unwrap().st_ino);
    let handed_over = Record::of(handed_over).unwrap();
    assert_eq!(handed_over.device::<String>().load().unwrap().as_deref(), Some("as it was left"));
    assert_eq!(worker.answer(), Answer::HandedOver);

    worker.tell(&Order::Yield);
    let Running { domain, thread, .. } = worker;
    thread.join().unwrap().unwrap();
    assert_eq!(domain.xen.servers().len(), 1, "the IOREQ server is left to the next");
}

#[test]
fn a_worker_whose_next_broker_is_of_another_version_or_goes_again_serves_on() {
    let worker = Running::start();
    worker.attach(XVDA, BASE_A, &[image().as_fd()]);

    let worker = worker.with_another_broker();
    let refused = worker.order(&Order::HandOver { version: VERSION + 1 }, &[]);
    assert!(matches!(refused, Answer::Unable { reason } if reason.contains("version")));

    let worker = worker.with_another_broker();
    worker.tell(&Order::HandOver { version: VERSION });
    assert_eq!(worker.answer(), Answer::Holds { id: disk_id(XVDA) });

    let worker = worker.with_another_broker();
    assert_eq!(worker.report().devices.len(), 1);
    worker.tell(&Order::Stop);
    worker.thread.join().unwrap().unwrap();
}
