//! A lane: the thread that works some of a device's queues.
//!
//! It waits for kicks, for the worker's own sources and for commands, calls the worker, and then
//! tells the driver once of all that the pass gave back. A fault or a panic of the worker stops this
//! lane; the thread never ends without reporting where its queues stand.

use std::any::Any;
use std::hint;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use guest_memory::MapCache;
use rustix::thread::set_current_timer_slack;
use smallvec::SmallVec;

use crate::mailbox::{Command, Mailbox};
use crate::moderation::{MOMENT, Moderation};
use crate::polling::Polling;
use crate::{Backend, Counters, Fault, Ledger, Ring, RingPosition, RingSetup, Signals, Wake, Worker};

/// How long a lane waits before it tries again for room in the map cache, in milliseconds. Room
/// appears when other requests of the guest complete, of which no event tells.
const STARVED_RETRY_MS: i32 = 1;

/// Requests that are given back before the driver is told of them though there are more, where telling is cheap. Fewer
/// cost more system calls. With more, the driver has not been woken, and made new ones, by the time the rest is done.
const PORTION: u16 = 8;

/// Passes in a row over queues that have more, before commands and sources have their turn again.
const PASSES: u32 = 8;

/// How often a lane looks at its queues in a row; some microseconds.
const LOOKS: u32 = 64;

/// What a lane starts with.
pub struct LaneSetup {
    /// The thread's name, of which the kernel shows 15 bytes.
    pub name: String,
    /// The device.
    pub backend: Arc<dyn Backend>,
    /// Which of its lanes this is.
    pub index: usize,
    /// The negotiated features.
    pub features: u64,
    /// The guest's memory.
    pub cache: Arc<MapCache>,
    /// The lane's queues, in order; `None` is one the driver did not enable.
    pub queues: Vec<Option<QueueSetup>>,
    /// The way to the driver.
    pub signals: Arc<dyn Signals>,
    /// Where to count.
    pub counters: Arc<Counters>,
    /// Called on the lane's thread, as its last act, with its queues' positions.
    pub ended: Box<dyn FnOnce(Vec<RingPosition>) + Send>,
}

/// What a lane needs to take a queue into service.
pub struct QueueSetup {
    /// Where it lies.
    pub ring: RingSetup,
    /// Where account of it is kept, if it is.
    pub ledger: Option<Ledger>,
    /// What wakes the lane for it: an eventfd that is never read, as each write to it counts.
    pub kick: Arc<dyn AsRawFd + Send + Sync>,
}

/// A running lane, or one that has ended. Dropping it stops the lane, without waiting for its end.
pub struct Lane {
    mailbox: Arc<Mailbox>,
}

impl Lane {
    /// Starts the thread. Queues that prove unusable, or a backend that does not start, are reported
    /// through [`Signals::needs_reset`].
    ///
    /// # Errors
    /// No thread or no eventfd is to be had; `ended` is dropped without being called.
    pub fn spawn(setup: LaneSetup) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let lane = Self { mailbox: Arc::clone(&mailbox) };
        thread::Builder::new().name(setup.name.clone()).spawn(move || run(setup, mailbox))?;
        Ok(lane)
    }

    /// Asks the lane to finish what is in flight and end.
    pub fn stop(&self) {
        self.mailbox.post(Command::Stop);
    }

    /// Asks the lane to finish what is in flight and take one of its queues out of service; `done`
    /// then runs on its thread, with where the queue stands. If the lane ends first, `done` is dropped.
    pub fn reset_queue(&self, queue: usize, done: Box<dyn FnOnce(RingPosition) + Send>) {
        self.mailbox.post(Command::ResetQueue(queue, done));
    }

    /// Asks the lane to take one of its queues into service.
    pub fn enable_queue(&self, queue: usize, setup: QueueSetup) {
        self.mailbox.post(Command::EnableQueue(queue, setup));
    }

    /// Asks the lane to let go of guest memory that no request holds, for what was invalidated to be
    /// unmapped even if the device idles.
    pub fn release_memory(&self) {
        self.mailbox.post(Command::ReleaseMemory);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(setup: LaneSetup, mailbox: Arc<Mailbox>) {
    let LaneSetup { name: _, backend, index, features, cache, queues, signals, counters, ended } = setup;
    let queue_base = backend.identity().lanes.get(index).map_or(0, |queues| queues.start);
    // A moment is to be a moment; by default the kernel may double it. It fails where seccomp forbids it.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let mut pass = Pass { rings: Vec::new(), queue_base, cache, signals, counters, listens: true };
    let served = guarded(|| {
        let mut kicks = Vec::new();
        for setup in queues {
            let (ring, kick) = match setup {
                Some(QueueSetup { ring, ledger, kick }) => (pass.ring(&ring, ledger)?, Some(kick)),
                None => (Ring::idle(&pass.cache), None),
            };
            pass.rings.push(ring);
            kicks.push(kick);
        }
        let worker =
            backend.start(index, features).map_err(|source| Fault::Host { doing: "starting the device", source })?;
        serve(worker, &mut pass, kicks, mailbox).map_err(|source| Fault::Host { doing: "waiting for events", source })
    });
    if let Err(fault) = served {
        pass.report(&fault);
    }
    let positions = pass.rings.iter().map(Ring::position).collect();
    // Whoever hears of the end may take it that no guest memory is held any more, nor anything of the host.
    drop((pass, backend));
    ended(positions);
}

/// Works until told to stop, or until the worker faults.
fn serve(worker: Box<dyn Worker>, pass: &mut Pass, kicks: Vec<Kick>, mailbox: Arc<Mailbox>) -> io::Result<()> {
    let mut events = EventManager::new().map_err(io::Error::other)?;
    let (moderation, polling) = (Moderation::new(), Polling::new(worker.polls_for()));
    let id = events.add_subscriber(Listener { worker, pass, kicks, mailbox, moderation, polling, ended: false });
    loop {
        let listener = events.subscriber_mut(id).map_err(io::Error::other)?;
        let timeout = listener.work_unasked();
        if listener.ended {
            return Ok(());
        }
        events.run_with_timeout(timeout).map_err(io::Error::other)?;
    }
}

/// What wakes the lane for a queue in service.
type Kick = Option<Arc<dyn AsRawFd + Send + Sync>>;

/// What a pass works on, beside the worker.
struct Pass {
    rings: Vec<Ring>,
    /// The device's number of the lane's first queue.
    queue_base: usize,
    cache: Arc<MapCache>,
    signals: Arc<dyn Signals>,
    counters: Arc<Counters>,
    /// Whether kicks are asked for; not while the lane looks on.
    listens: bool,
}

impl Pass {
    /// Takes a queue into service.
    fn ring(&self, setup: &RingSetup, ledger: Option<Ledger>) -> Result<Ring, Fault> {
        let mut ring = match ledger {
            Some(ledger) => Ring::recorded(setup, &self.cache, ledger)?,
            None => Ring::new(setup, &self.cache)?,
        };
        if self.signals.is_cheap() {
            ring.portion = ring.portion.min(PORTION);
        }
        Ok(ring)
    }

    /// Ends a pass, or several: tells the driver, once, of everything that was pushed.
    fn announce(&mut self) -> Result<(), Fault> {
        let mut due = SmallVec::<[usize; 4]>::new();
        for (index, ring) in self.rings.iter_mut().enumerate() {
            ring.publish()?;
            if self.listens {
                ring.end_pass()?;
            }
            self.counters.requests.fetch_add(std::mem::take(&mut ring.popped), Relaxed);
            self.counters.completions.fetch_add(std::mem::take(&mut ring.pushed), Relaxed);
            if ring.take_due()? {
                due.push(self.queue_base + index);
            }
        }
        if !due.is_empty() {
            self.counters.notifications.fetch_add(1, Relaxed);
            self.signals.used(&due);
        }
        Ok(())
    }

    /// Requests taken and given back since the driver was last told.
    fn events(&self) -> u64 {
        self.rings.iter().map(|ring| ring.popped + ring.pushed).sum()
    }

    fn report(&self, fault: &Fault) {
        self.counters.faults.fetch_add(1, Relaxed);
        self.signals.needs_reset(fault);
    }
}

/// The lane as the event loop knows it.
struct Listener<'a> {
    worker: Box<dyn Worker>,
    pass: &'a mut Pass,
    kicks: Vec<Kick>,
    mailbox: Arc<Mailbox>,
    moderation: Moderation,
    polling: Polling,
    ended: bool,
}

/// What stands in an event's 32 bits of data: a queue's index, a source's index with
/// [`SOURCE`] set, or [`MAILBOX`].
const SOURCE: u32 = 1 << 31;
const MAILBOX: u32 = u32::MAX;

impl Listener<'_> {
    /// Makes the passes that no event asks for, and tells how long to wait for the next event, in
    /// milliseconds; -1 is for ever.
    fn work_unasked(&mut self) -> i32 {
        for _ in 0..PASSES {
            for queue in 0..self.pass.rings.len() {
                if self.pass.rings.get_mut(queue).is_some_and(Ring::take_unasked) {
                    self.work(Wake::Queue(queue));
                }
            }
            if !self.pass.rings.iter().any(Ring::has_more) {
                break;
            }
        }
        if self.polling.is_on() {
            self.look_on();
        }
        if self.polling.is_on() || self.pass.rings.iter().any(Ring::has_more) {
            0
        } else if self.pass.rings.iter().any(Ring::is_starved) {
            self.pass.counters.starved.fetch_add(1, Relaxed);
            STARVED_RETRY_MS
        } else {
            -1
        }
    }

    /// Looks some times whether a queue has something, before commands and sources have their turn again.
    fn look_on(&mut self) {
        for _ in 0..LOOKS {
            for queue in 0..self.pass.rings.len() {
                if self.pass.rings.get(queue).is_some_and(Ring::has_available) {
                    self.work(Wake::Queue(queue));
                }
            }
            if self.ended || !self.polling.goes_on() {
                break;
            }
            hint::spin_loop();
        }
        if !self.polling.is_on() {
            self.announce();
        }
    }

    fn work(&mut self, wake: Wake) {
        let before = self.pass.events();
        self.call(wake);
        // Otherwise what there is waits for something else: memory, a limit.
        if self.pass.events() != before {
            self.polling.found();
        }
        let patience = if self.pass.signals.is_cheap() { None } else { self.worker.patience(wake) };
        if let Some(mut hold) = patience.and_then(|worthwhile| self.moderation.begin(worthwhile)) {
            while !self.ended && self.moderation.goes_on(&mut hold, self.pass.events()) {
                thread::sleep(MOMENT);
                (0..self.pass.rings.len()).for_each(|queue| self.call(Wake::Queue(queue)));
            }
            self.moderation.end(&hold);
        }
        self.announce();
    }

    fn announce(&mut self) {
        self.pass.listens = !self.polling.is_on();
        self.guard(|_, pass| pass.announce());
    }

    fn call(&mut self, wake: Wake) {
        tracing::trace!(name: "lane.wake", ?wake);
        self.guard(|worker, pass| {
            let worked = worker.work(wake, &mut pass.rings);
            pass.counters.passes.fetch_add(1, Relaxed);
            // What was done before a fault is done.
            let published = pass.rings.iter_mut().try_for_each(Ring::publish);
            worked.and(published)
        });
    }

    /// Runs device code, and ends the lane if it faults.
    fn guard(&mut self, device_code: impl FnOnce(&mut dyn Worker, &mut Pass) -> Result<(), Fault>) {
        if self.ended {
            return;
        }
        let Self { worker, pass, .. } = self;
        if let Err(fault) = guarded(|| device_code(&mut **worker, pass)) {
            // Before the worker is dropped, which may wait long for the host.
            self.pass.report(&fault);
            self.ended = true;
        }
    }

    fn obey(&mut self, command: Command, ops: &mut EventOps<'_>) {
        match command {
            Command::Stop => {
                self.drain();
                self.ended = true;
            }
            Command::ResetQueue(queue, done) => {
                self.drain();
                let position = self.pass.rings.get(queue).map(Ring::position).unwrap_or_default();
                self.replace_ring(queue, Ok(Ring::idle(&self.pass.cache)));
                self.replace_kick(queue, None, ops);
                done(position);
            }
            Command::EnableQueue(queue, setup) => {
                self.replace_ring(queue, self.pass.ring(&setup.ring, setup.ledger));
                self.replace_kick(queue, Some(setup.kick), ops);
            }
            Command::ReleaseMemory => self.pass.rings.iter_mut().for_each(Ring::release_memory),
        }
    }

    fn drain(&mut self) {
        self.guard(|worker, pass| {
            worker.drain(&mut pass.rings)?;
            pass.announce()
        });
    }

    fn replace_ring(&mut self, queue: usize, ring: Result<Ring, Fault>) {
        self.guard(|_, pass| {
            let new = ring?;
            let old = pass.rings.get_mut(queue).ok_or_else(|| Fault::Bug(format!("the lane has no queue {queue}")))?;
            *old = new;
            Ok(())
        });
    }
}

/// How kicks and sources are watched.
const EDGE: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

/// What to watch for a queue's kicks.
fn kicks_of(queue: usize, kick: &dyn AsRawFd) -> Events {
    // A device has fewer than 2^16 queues, whatever its transport.
    Events::with_data_raw(kick.as_raw_fd(), u32::try_from(queue).unwrap_or(MAILBOX), EDGE)
}

impl Listener<'_> {
    fn replace_kick(&mut self, queue: usize, kick: Kick, ops: &mut EventOps<'_>) {
        let Some(place) = self.kicks.get_mut(queue) else { return };
        let old = std::mem::replace(place, kick.clone());
        let removed = old.map_or(Ok(()), |old| ops.remove(kicks_of(queue, &*old)));
        let replaced = removed.and_then(|()| kick.map_or(Ok(()), |kick| ops.add(kicks_of(queue, &*kick))));
        self.end_unless_watched(replaced);
    }

    fn end_unless_watched(&mut self, watched: Result<(), event_manager::Error>) {
        if let Err(error) = watched {
            self.pass.report(&Fault::Host { doing: "watching for events", source: io::Error::other(error) });
            self.ended = true;
        }
    }
}

impl MutEventSubscriber for Listener<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let kicks = self.kicks.iter().enumerate();
        let kicks = kicks.filter_map(|(queue, kick)| Some(kicks_of(queue, &**kick.as_ref()?)));
        let sources = (SOURCE..).zip(self.worker.sources());
        let sources = sources.map(|(index, fd)| Events::with_data_raw(fd.as_raw_fd(), index, EDGE));
        let bell = Events::with_data(&self.mailbox.bell().as_fd(), MAILBOX, EventSet::IN);
        let watched = kicks.chain(sources).chain([bell]).try_for_each(|event| ops.add(event));
        self.end_unless_watched(watched);
    }

    fn process(&mut self, event: Events, ops: &mut EventOps<'_>) {
        match event.data() {
            MAILBOX => {
                for command in self.mailbox.take() {
                    self.obey(command, ops);
                }
            }
            index if index & SOURCE != 0 => self.work(Wake::Source((index & !SOURCE) as usize)),
            // The kick's eventfd is never read: watched by edge, each write is an event of its own.
            index => self.work(Wake::Queue(index as usize)),
        }
    }
}

/// Runs a device's code, and turns a panic of it into a fault.
///
/// # Errors
/// What the code returned; [`Fault::Bug`] if it panicked.
pub fn guarded<T>(device_code: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(device_code)).unwrap_or_else(|panic| Err(Fault::Bug(words_of(&*panic))))
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", words.unwrap_or("without words"))
}
