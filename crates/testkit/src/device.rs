//! A device that does as a test says, for tests of what drives devices.

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use virtio_backend::{Backend, Fault, Identity, Request, Ring, Signals, Wake, Worker};

/// A feature that the device offers.
pub const FEATURE: u64 = 1 << 5;

/// Another one, with which it cannot work.
pub const UNWELCOME_FEATURE: u64 = 1 << 6;

/// Its configuration space.
pub const CONFIG: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// What the device's workers do with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Copy its readable part to its writable part.
    Echo,
    /// The same, but not before the gate is opened.
    Hold,
    /// Hold one, and leave the others in the ring.
    HoldOne,
    /// Hold it, and panic when told to finish.
    PanicInDrain,
    /// Panic.
    Panic,
    /// Fault.
    Fault,
    /// There is no worker: the host refuses.
    FailStart,
}

/// A device whose behaviour a test can choose and watch.
pub struct TestDevice {
    identity: Identity,
    /// What workers do that are started from now on.
    pub behaviour: Mutex<Behaviour>,
    /// Configuration space.
    pub config: Mutex<Vec<u8>>,
    /// Reading and writing configuration space panics.
    pub config_panics: AtomicBool,
    /// What the device was attached to.
    pub signals: OnceLock<Arc<dyn Signals>>,
    /// What holds requests up.
    pub gate: Gate,
    /// Workers that exist.
    pub workers: Arc<AtomicU64>,
    /// Workers that were ever started.
    pub starts: AtomicU64,
    /// Requests that workers have held.
    pub held: Arc<AtomicU64>,
    /// Features of the last start.
    pub features: AtomicU64,
}

/// Holds up host I/O until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

/// A worker that panicked leaves no half-made change behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// Lets through what waits, and what comes.
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(lock(&self.0.0), |open| !*open));
    }
}

impl TestDevice {
    /// A device of two queues with a lane each.
    pub fn new(behaviour: Behaviour) -> Self {
        Self::with_lanes(behaviour, &[16, 8], vec![0..1, 1..2])
    }

    /// A device of queues of these sizes, worked by these lanes.
    pub fn with_lanes(behaviour: Behaviour, queue_sizes: &[u16], lanes: Vec<Range<usize>>) -> Self {
        let identity = Identity {
            device_id: 42,
            features: FEATURE | UNWELCOME_FEATURE,
            queue_sizes: queue_sizes.to_vec(),
            lanes,
            config_len: CONFIG.len(),
            max_chain_bytes: 0x1_0000,
        };
        Self {
            identity,
            behaviour: Mutex::new(behaviour),
            config: Mutex::new(CONFIG.to_vec()),
            config_panics: AtomicBool::new(false),
            signals: OnceLock::new(),
            gate: Gate::default(),
            workers: Arc::default(),
            starts: AtomicU64::new(0),
            held: Arc::default(),
            features: AtomicU64::new(0),
        }
    }
}

impl Backend for TestDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        assert!(!self.config_panics.load(SeqCst), "no such field");
        data.copy_from_slice(&lock(&self.config)[offset..offset + data.len()]);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        assert!(!self.config_panics.load(SeqCst), "no such field");
        lock(&self.config)[offset..offset + data.len()].copy_from_slice(data);
    }

    fn start(&self, _lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        let behaviour = *lock(&self.behaviour);
        if behaviour == Behaviour::FailStart {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.features.store(features, SeqCst);
        self.starts.fetch_add(1, SeqCst);
        self.workers.fetch_add(1, SeqCst);
        Ok(Box::new(TestWorker {
            behaviour,
            gate: self.gate.clone(),
            requests: Vec::new(),
            workers: self.workers.clone(),
            held: self.held.clone(),
        }))
    }

    fn accepts(&self, features: u64) -> bool {
        features & UNWELCOME_FEATURE == 0
    }

    fn attach(&self, signals: Arc<dyn Signals>) {
        assert!(self.signals.set(signals).is_ok(), "attached once");
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("workers", self.workers.load(SeqCst))]
    }
}

struct TestWorker {
    behaviour: Behaviour,
    gate: Gate,
    requests: Vec<(usize, Request)>,
    workers: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
}

impl Worker for TestWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let Wake::Queue(queue) = wake else { return Ok(()) };
        if self.behaviour == Behaviour::HoldOne {
            if self.requests.is_empty() {
                self.requests.extend(rings[queue].pop()?.map(|request| (queue, request)));
                self.held.store(self.requests.len() as u64, SeqCst);
            }
            return Ok(());
        }
        rings[queue].serve(|ring, request| match self.behaviour {
            Behaviour::Echo => echo(ring, request),
            Behaviour::Hold | Behaviour::PanicInDrain => {
                self.requests.push((queue, request));
                self.held.fetch_add(1, SeqCst);
                Ok(())
            }
            Behaviour::Fault => Err(Fault::Bug("as told".into())),
            Behaviour::Panic | Behaviour::HoldOne | Behaviour::FailStart => panic!("as told"),
        })
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        assert!(self.behaviour != Behaviour::PanicInDrain || self.requests.is_empty(), "as told");
        if !self.requests.is_empty() {
            self.gate.pass();
        }
        mem::take(&mut self.requests).into_iter().try_for_each(|(queue, request)| echo(&mut rings[queue], request))
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.workers.fetch_sub(1, SeqCst);
    }
}

fn echo(ring: &mut Ring, request: Request) -> Result<(), Fault> {
    let mut bytes = vec![0; request.readable.len()];
    request.readable.read(0, &mut bytes);
    let written = request.writable.write(0, &bytes);
    ring.push(request, written)
}

/// Waits for what other threads do. Panics if they never do.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "it never happens that {what}");
        thread::sleep(Duration::from_micros(100));
    }
}
