//! A broker that runs on a thread of its own, with a xenstored and workers that do as a test says.
//!
//! The test is the toolstack: it writes what libxl writes and waits for what libxl waits for.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod domain;
pub mod manager;

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use manager::Manager;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use testkit::xenstored::Xenstored;
use tokio::sync::{mpsc, oneshot};
use virtio_backend::Record;
use xen_virtio::broker::prepare::Directories;
use xen_virtio::broker::store::FdStore;
use xen_virtio::broker::worker::{Spawned, Spawner};
use xen_virtio::broker::{Broker, CLOSING_PATIENCE, DEATHS_PER_MINUTE, End, Request, Settings};
use xen_virtio::channel::{Channel, ChannelError};
use xen_virtio::model::{Class, Device, DeviceId, Place};
use xen_virtio::protocol::{Answer, Former, Order, Report, VERSION};
use xen_virtio::toolstack::Toolstack;
use xenstore::{Address, Options, Store};

/// Longer than anything here takes on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const XVDA: u32 = 51712;
pub const XVDB: u32 = 51728;

pub fn disk_id(number: u32) -> DeviceId {
    DeviceId { class: Class::VirtioDisk, number }
}

/// A broker and all around it.
pub struct Rig {
    pub xenstored: Xenstored,
    pub directory: TempDir,
    pub requests: mpsc::Sender<Request>,
    /// The domain that the broker runs in.
    domid: u16,
    broker: Option<JoinHandle<End>>,
    /// Plays the service manager, if there is one.
    pub manager: Option<Manager>,
}

/// Where the broker runs if that is not Dom0.
pub const DRIVER_DOMAIN: u16 = 3;

impl Rig {
    /// Starts a broker over what `before` has put into xenstore.
    pub fn start_with(spawner: impl Spawner + Send + 'static, patience: Duration, before: impl FnOnce(&Self)) -> Self {
        Self::start_as(spawner, patience, None, before)
    }

    /// A broker in a driver domain, started over what `before` has put into xenstore.
    pub fn start_in_driver_domain(before: impl FnOnce(&Self)) -> (Self, Workers) {
        let (spawner, workers) = workers();
        (Self::start_in(DRIVER_DOMAIN, spawner, CLOSING_PATIENCE, None, None, before), workers)
    }

    /// The same, serving one kind of device only, if one is given.
    pub fn start_as(
        spawner: impl Spawner + Send + 'static,
        patience: Duration,
        only: Option<u32>,
        before: impl FnOnce(&Self),
    ) -> Self {
        Self::start_in(0, spawner, patience, only, None, before)
    }

    /// A broker that a service manager has started.
    pub fn start_under(manager: Manager) -> (Self, Workers) {
        let (spawner, workers) = workers();
        (Self::start_under_with(spawner, manager), workers)
    }

    /// The same, whose workers are of this spawner.
    pub fn start_under_with(spawner: impl Spawner + Send + 'static, manager: Manager) -> Self {
        Self::start_in(0, spawner, CLOSING_PATIENCE, None, Some(manager), |_| {})
    }

    fn start_in(
        domid: u16,
        spawner: impl Spawner + Send + 'static,
        patience: Duration,
        only: Option<u32>,
        manager: Option<Manager>,
        before: impl FnOnce(&Self),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let xenstored = Xenstored::start_for(domid, directory.path().join("xenstored")).unwrap();
        let (requests, _) = mpsc::channel(1);
        let mut rig = Self { xenstored, directory, requests, domid, broker: None, manager };
        before(&rig);
        rig.start_broker(spawner, patience, only);
        rig
    }

    fn start_broker(&mut self, spawner: impl Spawner + Send + 'static, patience: Duration, only: Option<u32>) {
        let (requests, for_broker) = mpsc::channel(8);
        let socket = self.xenstored.socket().to_owned();
        let here = self.directory.path();
        let directories = Directories { configurations: here.to_owned(), runtime: here.to_owned() };
        let store = self.manager.as_ref().map_or_else(|| FdStore::new(None, Vec::new()), Manager::store);
        let deaths_per_minute = DEATHS_PER_MINUTE;
        let settings = Settings { directories, only, closing_patience: patience, deaths_per_minute, store };
        let (ready, is_ready) = std_mpsc::channel();
        self.requests = requests;
        self.broker = Some(thread::spawn(move || run_broker(socket, spawner, settings, for_broker, ready)));
        is_ready.recv_timeout(PATIENCE).expect("the broker gets ready");
    }

    /// Ends the broker, and leaves its workers to themselves.
    pub fn stop_broker(&mut self) {
        self.request(Request::Stop);
        self.broker.take().unwrap().join().unwrap();
    }

    /// Starts another broker in the place of one that has ended. Gives its workers.
    pub fn start_another(&mut self) -> Workers {
        self.start_another_where(true)
    }

    /// The same, on a host that has the guests' domains still, or not any more.
    pub fn start_another_where(&mut self, domains_exist: bool) -> Workers {
        let (spawner, workers) = workers();
        workers.domains_exist(domains_exist);
        self.start_another_with(spawner);
        workers
    }

    /// The same, whose workers are of this spawner.
    pub fn start_another_with(&mut self, spawner: impl Spawner + Send + 'static) {
        self.start_broker(spawner, CLOSING_PATIENCE, None);
    }

    pub fn start() -> (Self, Workers) {
        let (spawner, workers) = workers();
        (Self::start_with(spawner, CLOSING_PATIENCE, |_| {}), workers)
    }

    pub fn set(&self, path: &str, value: &str) {
        self.xenstored.set(path, value);
    }

    /// Makes a file of `size` bytes that can be a disk.
    pub fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// As `xl create` does, up to the point where it waits.
    pub fn create_disk(&self, domid: u16, number: u32, image: &Path) {
        self.write_disk(domid, number, image);
        self.set(&self.node(domid, number, "state"), "1");
    }

    /// A node of a disk.
    pub fn node(&self, domid: u16, number: u32, key: &str) -> String {
        node_of(self.domid, domid, number, key)
    }

    /// All of a disk but its state, which makes it whole.
    pub fn write_disk(&self, domid: u16, number: u32, image: &Path) {
        let index = (number - XVDA) / 16;
        let vdev = format!("xvd{}", char::from(b'a' + u8::try_from(index).unwrap()));
        self.xenstored.introduce_domain(domid);
        self.set(&format!("/local/domain/{domid}/name"), &format!("guest-{domid}"));
        self.set(&format!("/local/domain/{domid}/vm"), &format!("/vm/0000-{domid}"));
        let directory = format!("/local/domain/{}/backend/virtio_disk/{domid}/{number}", self.domid);
        self.set(&directory, "");
        self.xenstored.set_permissions(&directory, &[&format!("n{}", self.domid), &format!("r{domid}")]);
        for (key, value) in [
            ("frontend-id", &*domid.to_string()),
            ("online", "1"),
            ("params", image.to_str().unwrap()),
            ("dev", &vdev),
            ("mode", "w"),
            ("device-type", "disk"),
            ("discard-enable", "1"),
            ("specification", "virtio"),
            ("transport", "mmio"),
            ("base", &(0x0200_0000 + index * 0x200).to_string()),
            ("irq", &(33 + index).to_string()),
        ] {
            self.set(&self.node(domid, number, key), value);
        }
    }

    /// As `xl create` does for an entry of `virtio=[...]`; it waits for nobody.
    pub fn create_virtio(&self, domid: u16, number: u32, spelled: &str) {
        self.xenstored.introduce_domain(domid);
        self.set(&format!("/local/domain/{domid}/name"), &format!("guest-{domid}"));
        for (key, value) in [
            ("frontend-id", &*domid.to_string()),
            ("online", "1"),
            ("type", spelled),
            ("transport", "mmio"),
            ("base", &format!("{:#x}", 0x0200_0000 + number * 0x200)),
            ("irq", &(33 + number).to_string()),
            ("grant_usage", "0"),
            ("state", "1"),
        ] {
            self.set(&virtio_node(domid, number, key), value);
        }
    }

    /// As `xl destroy` does, up to the point where it waits.
    pub fn close_virtio(&self, domid: u16, number: u32) {
        self.set(&virtio_node(domid, number, "online"), "0");
        self.set(&virtio_node(domid, number, "state"), "5");
    }

    pub fn wait_for_virtio_state(&self, domid: u16, number: u32, state: &str) {
        let node = virtio_node(domid, number, "state");
        assert!(self.xenstored.wait_for_value(&node, state), "{node} is {:?} and not {state}", self.text(&node));
    }

    /// As `xl destroy` does, up to the point where it waits.
    pub fn close_disk(&self, domid: u16, number: u32) {
        self.set(&self.node(domid, number, "online"), "0");
        self.set(&self.node(domid, number, "state"), "5");
    }

    pub fn state(&self, domid: u16, number: u32) -> Option<String> {
        self.text(&self.node(domid, number, "state"))
    }

    pub fn text(&self, path: &str) -> Option<String> {
        self.xenstored.get(path).map(|value| String::from_utf8(value).unwrap())
    }

    #[track_caller]
    pub fn wait_for_state(&self, domid: u16, number: u32, state: &str) {
        let reached = self.xenstored.wait_for_value(&self.node(domid, number, "state"), state);
        assert!(reached, "state of {domid}/{number} is {:?} and not {state}", self.state(domid, number));
    }

    /// Waits until the broker has refused the device, and gives its reason.
    #[track_caller]
    pub fn wait_for_refusal(&self, domid: u16, number: u32) -> String {
        wait_until(|| self.state(domid, number).is_none());
        self.text(&self.node(domid, number, "error")).expect("a reason")
    }

    /// Waits until the broker has dealt with everything that happened before.
    pub fn settle(&self) {
        let (reply, views) = oneshot::channel();
        // Twice: what is under way between xenstored and the broker when the first is asked is done at the second.
        for reply in [Some(reply), None] {
            let reply = reply.unwrap_or_else(|| oneshot::channel().0);
            self.requests.blocking_send(Request::List(reply)).unwrap();
        }
        drop(views.blocking_recv());
    }

    pub fn request(&self, request: Request) {
        self.requests.blocking_send(request).unwrap();
    }

    /// Waits for the broker's end.
    pub fn wait_for_end(&mut self) -> End {
        self.broker.take().unwrap().join().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let _ = self.requests.blocking_send(Request::Stop);
            let ended = broker.join();
            assert!(ended.is_ok() || thread::panicking(), "the broker panicked");
        }
    }
}

fn run_broker(
    socket: PathBuf,
    spawner: impl Spawner,
    settings: Settings,
    requests: mpsc::Receiver<Request>,
    ready: std_mpsc::Sender<()>,
) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options { addresses: vec![Address::Socket(socket)], patience: PATIENCE };
        let store = Store::connect(options).await.unwrap();
        Broker::run(Toolstack::Libxl(store), spawner, settings, requests, || ready.send(()).unwrap()).await.unwrap()
    })
}

/// A node of a disk whose backend is in Dom0.
pub fn node(domid: u16, number: u32, key: &str) -> String {
    node_of(0, domid, number, key)
}

fn node_of(backend: u16, domid: u16, number: u32, key: &str) -> String {
    format!("/local/domain/{backend}/backend/virtio_disk/{domid}/{number}/{key}")
}

pub fn virtio_node(domid: u16, number: u32, key: &str) -> String {
    format!("/local/domain/0/backend/virtio/{domid}/{number}/{key}")
}

pub fn virtio_id(number: u32) -> DeviceId {
    DeviceId { class: Class::Virtio, number }
}

#[track_caller]
pub fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Hands what the broker starts to the test.
pub struct TestSpawner(std_mpsc::Sender<TestWorker>, Arc<Domains>);

/// The IOREQ server of a test's worker.
pub const SERVER: u16 = 3;

/// Whether there are domains, as a test has it, and how often that was asked; whether there is a gntdev; and whether
/// processes can be started.
struct Domains {
    exist: AtomicBool,
    asked: AtomicU32,
    gntdev: AtomicBool,
    processes: AtomicBool,
}

/// The workers that were started, in order.
pub struct Workers(std_mpsc::Receiver<TestWorker>, Arc<Domains>);

pub fn workers() -> (TestSpawner, Workers) {
    let (started, workers) = std_mpsc::channel();
    let yes = || AtomicBool::new(true);
    let domains = Arc::new(Domains { exist: yes(), asked: AtomicU32::new(0), gntdev: yes(), processes: yes() });
    (TestSpawner(started, Arc::clone(&domains)), Workers(workers, domains))
}

impl Spawner for TestSpawner {
    fn spawn(&self, domid: u16, former: Option<Former>) -> anyhow::Result<Spawned> {
        anyhow::ensure!(self.1.processes.load(Ordering::SeqCst), "no process left");
        let (channel, there) = Channel::pair()?;
        let (end, ended) = oneshot::channel();
        let (kill, killed) = oneshot::channel();
        let (was_killed, is_killed) = std_mpsc::channel();
        let ended = Box::pin(async move {
            tokio::select! {
                // One that a test just drops lives on.
                Ok(how) = ended => how,
                Ok(()) = killed => {
                    let _ = was_killed.send(());
                    "signal: 9".to_owned()
                }
                else => "the test is over".to_owned(),
            }
        });
        self.0.send(TestWorker { domid, former, channel: there, end, is_killed }).unwrap();
        Ok(Spawned { channel, kill, ended })
    }

    fn open_gntdev(&self) -> anyhow::Result<OwnedFd> {
        anyhow::ensure!(self.1.gntdev.load(Ordering::SeqCst), "no grants here: modprobe xen-gntdev");
        Ok(std::fs::File::open("/dev/null")?.into())
    }

    fn vcpus(&self, _domid: u16) -> Option<u16> {
        Some(2)
    }

    fn has_domain(&self, _domid: u16) -> bool {
        self.1.asked.fetch_add(1, Ordering::SeqCst);
        self.1.exist.load(Ordering::SeqCst)
    }
}

impl Workers {
    #[track_caller]
    pub fn next(&self) -> TestWorker {
        let worker = self.0.recv_timeout(PATIENCE).expect("a worker is started");
        worker.say(&Answer::Created { server: worker.former.as_ref().map_or(SERVER, |former| former.server) });
        worker.say(&Answer::Started { version: VERSION });
        worker
    }

    pub fn none(&self) -> bool {
        self.0.try_recv().is_err()
    }

    /// Takes the kernel's driver for grants away.
    pub fn no_gntdev(&self) {
        self.1.gntdev.store(false, Ordering::SeqCst);
    }

    /// Whether the host has processes left.
    pub fn processes_can_be_started(&self, can: bool) {
        self.1.processes.store(can, Ordering::SeqCst);
    }

    /// Whether there are domains.
    pub fn domains_exist(&self, they_do: bool) {
        self.1.exist.store(they_do, Ordering::SeqCst);
    }

    /// Has all domains go, the broker notice, and domains of the same numbers come.
    pub fn all_domains_go_and_come(&self) {
        self.1.exist.store(false, Ordering::SeqCst);
        let asked = self.1.asked.load(Ordering::SeqCst);
        wait_until(|| self.1.asked.load(Ordering::SeqCst) > asked + 1);
        self.1.exist.store(true, Ordering::SeqCst);
    }
}

/// The other end of a worker: what its process would do, the test does.
pub struct TestWorker {
    pub domid: u16,
    /// What it is told of the worker before it.
    pub former: Option<Former>,
    pub channel: Channel,
    end: oneshot::Sender<String>,
    is_killed: std_mpsc::Receiver<()>,
}

impl TestWorker {
    #[track_caller]
    pub fn order(&self) -> (Order, Vec<OwnedFd>) {
        let timeout = Timespec::try_from(PATIENCE).unwrap();
        let ready = poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "the broker says nothing");
        self.channel.try_receive().unwrap().expect("the broker is there")
    }

    pub fn has_no_order(&self) -> bool {
        let received = self.channel.try_receive::<Order>();
        matches!(received, Err(ChannelError::Io(error)) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Expects to be told to claim the window of a device.
    #[track_caller]
    pub fn told_to_reserve(&self, number: u32) -> Place {
        match self.order().0 {
            Order::Reserve { id, place } if id == virtio_id(number) => place,
            other => panic!("told {other:?}"),
        }
    }

    /// The next order that is not to say how the guest is, which the broker may ask at any time: it is well.
    #[track_caller]
    pub fn order_to_do(&self) -> (Order, Vec<OwnedFd>) {
        loop {
            match self.order() {
                (Order::Report, _) => self.say(&Answer::Report(Report { alive: true, ..Report::default() })),
                order => return order,
            }
        }
    }

    /// Is asked how the guest is: it has ended.
    #[track_caller]
    pub fn report_the_guests_end(&self) {
        assert_eq!(self.order().0, Order::Report);
        self.say(&Answer::Report(Report { alive: false, ..Report::default() }));
    }

    /// Expects to be told to serve a device.
    #[track_caller]
    pub fn told_to_attach(&self) -> (Device, Vec<OwnedFd>) {
        let (device, descriptors, _) = self.told_to_attach_with_record();
        (device, descriptors)
    }

    /// Expects to be told to serve a device; what of its record a worker would see, too.
    #[track_caller]
    pub fn told_to_attach_with_record(&self) -> (Device, Vec<OwnedFd>, Record) {
        match self.order_to_do() {
            (Order::Attach { device }, mut descriptors) => {
                let record = descriptors.pop().expect("a record");
                (*device, descriptors, Record::of(record).unwrap())
            }
            (other, _) => panic!("told {other:?}"),
        }
    }

    /// Is told to serve a device, and does.
    #[track_caller]
    pub fn attach(&self) -> Device {
        let (device, _) = self.told_to_attach();
        self.say(&Answer::Attached { id: device.id });
        device
    }

    #[track_caller]
    pub fn told_to_detach(&self, number: u32) {
        assert_eq!(self.order_to_do().0, Order::Detach { id: disk_id(number) });
    }

    #[track_caller]
    pub fn detach(&self, number: u32) {
        self.told_to_detach(number);
        self.say(&Answer::Detached { id: disk_id(number), used: true });
    }

    /// Is told to end, and does.
    #[track_caller]
    pub fn stop(self) {
        assert_eq!(self.order_to_do().0, Order::Stop);
        self.end("exit status: 0");
    }

    pub fn say(&self, answer: &Answer) {
        self.channel.send(answer, &[]).unwrap();
    }

    pub fn end(self, how: &str) {
        self.end.send(how.to_owned()).unwrap();
    }

    #[track_caller]
    pub fn wait_until_killed(&self) {
        self.is_killed.recv_timeout(PATIENCE).expect("the worker is killed");
    }

    pub fn is_killed(&self) -> bool {
        self.is_killed.try_recv().is_ok()
    }

    pub fn socket(&self) -> impl AsFd + '_ {
        &self.channel
    }
}
