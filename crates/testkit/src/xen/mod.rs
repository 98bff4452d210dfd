//! Xen as one guest's device model and its vCPUs see it, in the test's own process.
//!
//! Behaves as xen/common/ioreq.c and Linux's drivers/xen/evtchn.c do, and records a *violation*
//! whenever the rules between them are broken: a state that goes backwards, a changed port, an
//! answer with bits above the access's size, a request that is not answered in time, a server
//! destroyed under a waiting vCPU. The vCPU concerned panics at once, and [`FakeXen`]'s drop panics
//! for whatever else was recorded, so a test needs no assertion to fail.
//!
//! One lock guards all of it, and is held for moments only; a [`Vcpu`] sleeps on a condition
//! variable as a trapped one does in Xen. One `FakeXen` is one guest.

mod channels;
mod hypervisor;
mod page;
mod vcpu;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_bus::Window;
use ioreq::ServerId;
use rustix::io::Errno;

pub use channels::{Calls, FakeChannels};
pub use hypervisor::{DmOp, FakeHypervisor};
pub use page::{Flags, Ioreq, PostedWrite, STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESPONSE};
pub use vcpu::{Fault, Vcpu};

use channels::Channel;
use page::{BufferedPage, SlotPage};

/// How long a vCPU waits before it says that nobody answers.
const DEADLINE: Duration = Duration::from_secs(20);

/// A guest domain, seen from Xen.
pub struct FakeXen {
    state: Mutex<State>,
    /// Something happened that a vCPU or a test may wait for.
    to_guest: Condvar,
    /// Something fired, or a wait is to end.
    to_backend: Condvar,
    vcpus: Vec<Mutex<()>>,
}

#[derive(Default)]
struct State {
    servers: BTreeMap<ServerId, Server>,
    /// By the number Xen's end of the channel has.
    channels: BTreeMap<u32, Channel>,
    queues: BTreeMap<u32, channels::Queue>,
    next_port: u32,
    next_queue: u32,
    irqs: BTreeMap<u32, u64>,
    failures: VecDeque<(DmOp, Errno)>,
    dying: bool,
    violations: Vec<String>,
    deadline: Option<Duration>,
}

struct Server {
    enabled: bool,
    windows: Vec<Window>,
    page: Arc<SlotPage>,
    /// One for each vCPU.
    slots: Vec<Slot>,
    buffered: Option<Buffered>,
}

/// What Xen keeps of a slot, outside the page (`struct ioreq_vcpu`).
struct Slot {
    port: u32,
    pending: bool,
}

struct Buffered {
    page: Arc<BufferedPage>,
    port: u32,
}

impl FakeXen {
    /// A guest with so many vCPUs.
    pub fn new(vcpus: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { next_port: 10, ..State::default() }),
            to_guest: Condvar::new(),
            to_backend: Condvar::new(),
            vcpus: (0..vcpus).map(|_| Mutex::new(())).collect(),
        })
    }

    /// The control side, as /dev/xen/privcmd gives it.
    pub fn hypervisor(self: &Arc<Self>) -> Arc<FakeHypervisor> {
        Arc::new(FakeHypervisor::new(Arc::clone(self)))
    }

    /// A newly opened /dev/xen/evtchn.
    pub fn channels(self: &Arc<Self>) -> Arc<FakeChannels> {
        Arc::new(FakeChannels::open(Arc::clone(self)))
    }

    /// The guest's vCPU `index`.
    pub fn vcpu(self: &Arc<Self>, index: usize) -> Vcpu {
        assert!(index < self.vcpus.len(), "the guest has {} vCPUs", self.vcpus.len());
        Vcpu::new(Arc::clone(self), index)
    }

    /// How often `irq` was set high so far.
    pub fn irq(&self, irq: u32) -> u64 {
        self.lock().irqs.get(&irq).copied().unwrap_or(0)
    }

    /// Waits until `irq` was set high more than `seen` times, and says how often it was.
    pub fn wait_irq(&self, irq: u32, seen: u64) -> u64 {
        let count = |state: &State| state.irqs.get(&irq).copied().filter(|count| *count > seen);
        self.wait_for(|state| count(state)).unwrap_or_else(|| panic!("irq {irq} was not raised after {seen}"))
    }

    /// Makes the next `op` fail with `errno`. May be called several times, for several failures.
    pub fn fail_next(&self, op: DmOp, errno: Errno) {
        self.lock().failures.push_back((op, errno));
    }

    /// Begins the guest's end, as `xl destroy` does: its vCPUs run no more, hypercalls say `ESRCH`.
    pub fn kill_guest(&self) {
        self.lock().dying = true;
        self.to_guest.notify_all();
    }

    /// How long a vCPU waits for an answer before it panics; 20 s if not set.
    pub fn set_deadline(&self, deadline: Duration) {
        self.lock().deadline = Some(deadline);
    }

    /// The servers there are.
    pub fn servers(&self) -> Vec<ServerId> {
        self.lock().servers.keys().copied().collect()
    }

    /// The windows a server has, in the order they were mapped.
    pub fn windows(&self, server: ServerId) -> Vec<Window> {
        self.lock().servers.get(&server).map(|server| server.windows.clone()).unwrap_or_default()
    }

    /// Whether a server is enabled.
    pub fn is_enabled(&self, server: ServerId) -> bool {
        self.lock().servers.get(&server).is_some_and(|server| server.enabled)
    }

    /// Broken rules so far. The test that takes them expected them.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().violations)
    }

    /// The read and write index of a server's buffered ring.
    pub fn ring_indices(&self, server: ServerId) -> (u32, u32) {
        self.ring(server).pointers()
    }

    /// Puts anything into a server's buffered ring (entries from the first on, both indices), and signals.
    pub fn set_ring(&self, server: ServerId, entries: &[u64], read: u32, written: u32) {
        self.ring(server).set(entries, read, written);
        let mut state = self.lock();
        let port = state.servers.get(&server).and_then(|server| server.buffered.as_ref()).expect("a ring").port;
        state.signal(port);
        drop(state);
        self.to_backend.notify_all();
    }

    fn ring(&self, server: ServerId) -> Arc<BufferedPage> {
        let state = self.lock();
        let server = state.servers.get(&server).expect("no such server");
        Arc::clone(&server.buffered.as_ref().expect("a server with buffering").page)
    }

    /// The bare slot of a vCPU: for tests that break Xen's own rules.
    pub fn slot(&self, server: ServerId, vcpu: usize) -> RawSlot<'_> {
        RawSlot { xen: self, server, vcpu }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, up to the deadline, until `ready` gives something.
    fn wait_for<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        let end = Instant::now() + state.deadline.unwrap_or(DEADLINE);
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = end.checked_duration_since(Instant::now())?;
            // A look now and then, too: a slot's state may change without a signal, and that is
            // what some violations consist of.
            let nap = left.min(Duration::from_millis(1));
            state = self.to_guest.wait_timeout(state, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn violation(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn new_port(&mut self) -> u32 {
        self.next_port += 1;
        self.next_port
    }
}

impl Drop for FakeXen {
    fn drop(&mut self) {
        let violations = self.take_violations();
        assert!(violations.is_empty() || std::thread::panicking(), "rules were broken: {violations:#?}");
    }
}

/// A slot without Xen's care: nothing waits for it, nothing checks it.
pub struct RawSlot<'a> {
    xen: &'a FakeXen,
    server: ServerId,
    vcpu: usize,
}

impl RawSlot<'_> {
    /// Puts a request there in the given state, and says nothing.
    pub fn put(&self, request: Ioreq, state: u8) {
        let port = self.port();
        self.page().write(self.vcpu, &request, port, state);
    }

    /// Signals the slot's channel.
    pub fn signal(&self) {
        let port = self.port();
        self.xen.lock().signal(port);
        self.xen.to_backend.notify_all();
    }

    /// The slot's state and data now.
    pub fn get(&self) -> (u8, u64) {
        let page = self.page();
        (page.state(self.vcpu), page.data(self.vcpu))
    }

    /// Waits until the slot is answered, frees it, and gives its data.
    pub fn take_answer(&self) -> u64 {
        let page = self.page();
        let answered = self.xen.wait_for(|_| (page.state(self.vcpu) == STATE_RESPONSE).then_some(()));
        assert!(answered.is_some(), "vCPU {}'s slot was not answered", self.vcpu);
        let data = page.data(self.vcpu);
        page.set_state(self.vcpu, STATE_NONE);
        data
    }

    /// Changes all but flags, state and port behind everybody's back.
    pub fn scribble(&self, request: Ioreq) {
        self.page().scribble(self.vcpu, &request);
    }

    /// Names another event channel in the slot. Xen knows better, and refuses the vCPU's next request while it stands there.
    pub fn set_port(&self, port: u32) {
        self.page().set_port(self.vcpu, port);
    }

    /// Names the channel again that Xen made for the slot.
    pub fn restore_port(&self) {
        self.page().set_port(self.vcpu, self.port());
    }

    fn page(&self) -> Arc<SlotPage> {
        Arc::clone(&self.xen.lock().servers.get(&self.server).expect("no such server").page)
    }

    fn port(&self) -> u32 {
        self.xen.lock().servers.get(&self.server).expect("no such server").slots[self.vcpu].port
    }
}
