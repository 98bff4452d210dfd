//! The thread that takes requests and gives answers.
//!
//! It sleeps on its event channels, and on nothing else: a device does no I/O in an access, and one
//! that needs time defers its answer. Three system calls serve a trap: a read that sleeps and says
//! which channels fired, one write that unmasks them all, one signal for the answer. A second
//! descriptor to stop by would make that four (a poll, as well); a signal to the thread stops it instead.
//!
//! Each pass looks at every slot once, whatever fired, so a lost or merged event costs nothing and no
//! vCPU keeps another waiting for more than one access.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use io_bus::{Bus, Deferral};

use crate::access::{GuestRam, NoRam, perform};
use crate::buffered::BadEntry;
use crate::counters::{Counters, Counts};
use crate::page::SLOTS;
use crate::request::{Access, BadRequest, Direction, Request};
use crate::server::IoreqServer;
use crate::slot::{InFlight, Slot};
use crate::xen::{EventChannels, LocalPort, Wake, XenError};

/// The slots' channels, and that of the buffered ring.
pub(crate) const MAX_PORTS: usize = SLOTS as usize + 1;

/// Between passes while waiting fails: slow enough to be no load, fast enough for a guest to live on.
const BLIND_PASS: Duration = Duration::from_millis(10);

/// Between two attempts to wake the thread so that it stops.
const STOP_RETRY: Duration = Duration::from_millis(1);

/// The running thread. Dropping it stops it.
pub struct Pump {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// Why the pump does not run.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// Xen sends no requests.
    #[error("Cannot enable the IOREQ server")]
    Enable(#[source] XenError),
    /// A vCPU's channel cannot be had.
    #[error("Cannot bind the event channel of vCPU {vcpu}")]
    Bind {
        /// Whose.
        vcpu: u8,
        /// What the kernel said.
        source: XenError,
    },
    /// The buffered ring's channel cannot be had.
    #[error("Cannot bind the event channel of buffered writes")]
    BindBuffered(#[source] XenError),
    /// The system has no thread left.
    #[error("Cannot start a thread")]
    Thread(#[source] io::Error),
}

/// What the thread and its owner both see, and accesses that wait for their device.
struct Shared {
    stopping: AtomicBool,
    counters: Arc<Counters>,
    bus: Arc<Bus>,
    ram: Arc<dyn GuestRam>,
    events: Arc<dyn EventChannels>,
}

/// What the thread owns.
struct Worker {
    shared: Arc<Shared>,
    server: Arc<IoreqServer>,
    slots: Vec<Arc<Slot>>,
    /// Of all slots, and of the buffered ring.
    ports: Vec<LocalPort>,
}

impl Pump {
    /// Enables the server, and serves what it gets: accesses from `bus`, invalidations by `ram`. Starts
    /// with what a former process left unanswered.
    ///
    /// # Errors
    /// The server is disabled again, and what was in its slots is answered where that is possible; one that was
    /// [attached](IoreqServer::attach) to is left as it was.
    pub fn spawn(
        server: Arc<IoreqServer>,
        events: Arc<dyn EventChannels>,
        bus: Arc<Bus>,
        ram: Arc<dyn GuestRam>,
    ) -> Result<Self, PumpError> {
        let shared = Arc::new(Shared { stopping: AtomicBool::new(false), counters: Arc::default(), bus, ram, events });
        let (slots, ports) = (Vec::new(), Vec::new());
        let mut worker = Worker { shared: Arc::clone(&shared), server: Arc::clone(&server), slots, ports };
        worker.bind()?;
        let thread = thread::Builder::new().name("ioreq".to_owned()).spawn(move || worker.run());
        let thread = Some(thread.map_err(PumpError::Thread)?);
        server.take_over();
        Ok(Self { thread, shared })
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        self.shared.counters.snapshot(self.shared.bus.unclaimed())
    }

    /// Disables the server, answers what it had got until then, and ends the thread. Answers that
    /// devices deferred are still given when they complete. (Of a server that was
    /// [released](IoreqServer::release), requests are left to whoever attaches.)
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        while !thread.is_finished() {
            if let Err(error) = self.shared.events.interrupt(&thread) {
                tracing::error!(name: "ioreq.stuck", %error, "The pump cannot be stopped, and is left to itself");
                return;
            }
            thread::sleep(STOP_RETRY);
        }
        if thread.join().is_err() {
            tracing::error!(name: "ioreq.pump_panicked", "The pump had ended early, by a mistake of ours");
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Worker {
    /// A slot says where to signal only while the server is enabled, hence that first.
    fn bind(&mut self) -> Result<(), PumpError> {
        self.server.set_enabled(true).map_err(PumpError::Enable)?;
        let Shared { events, counters, .. } = self.shared.as_ref();
        let page = self.server.page();
        for index in self.server.slots() {
            let bound = events.bind(page.remote_port(index));
            let port = bound.map_err(|source| PumpError::Bind { vcpu: index.vcpu(), source })?;
            let slot = Slot::new(Arc::clone(page), index, port, Arc::clone(events), Arc::clone(counters));
            self.slots.push(Arc::new(slot));
            self.ports.push(port);
        }
        if let Some((_, remote)) = self.server.buffered() {
            self.ports.push(events.bind(*remote).map_err(PumpError::BindBuffered)?);
        }
        Ok(())
    }

    fn run(self) {
        for slot in &self.slots {
            match slot.adopt() {
                Some(request) => self.serve(request),
                None => slot.tell_again(),
            }
        }
        // What came before its channel was bound has no event any more.
        self.pass();
        let mut fired = [LocalPort::default(); MAX_PORTS];
        while !self.shared.stopping.load(Ordering::Acquire) {
            let woken = self.sleep(&mut fired);
            if !self.pass() && woken {
                self.shared.counters.spurious_wakes.add_one();
            }
        }
    }

    /// Waits, and has what fired able to fire again before anyone looks at the slots: a request that
    /// comes after the look makes a new event. Says whether anything fired.
    fn sleep(&self, fired: &mut [LocalPort]) -> bool {
        let Shared { events, counters, .. } = self.shared.as_ref();
        let result = match events.wait(fired) {
            Ok(Wake::Fired(count)) => events.unmask(fired.get(..count).unwrap_or_default()).map(|()| true),
            Ok(Wake::Interrupted) => Ok(false),
            Ok(Wake::Overflowed) => {
                tracing::warn!(name: "ioreq.overflow", "Events were lost; looking at all slots");
                counters.overflows.add_one();
                events.reset().and_then(|()| events.unmask(&self.ports)).map(|()| true)
            }
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error| {
            tracing::error!(name: "ioreq.deaf", %error, "Waiting for events failed; looking at all slots now and then");
            thread::sleep(BLIND_PASS);
            false
        })
    }

    /// Serves every request there is, once. Says whether there was one.
    fn pass(&self) -> bool {
        let mut found = self.drain_buffered();
        for request in self.slots.iter().filter_map(Slot::take) {
            found = true;
            // What this vCPU posted before it made the request, perhaps just now, comes first.
            self.drain_buffered();
            self.serve(request);
        }
        found
    }

    fn serve(&self, request: InFlight) {
        let vcpu = request.vcpu();
        self.shared.contain(|| self.dispatch(request), format_args!("vCPU {vcpu}'s access"));
    }

    /// Wherever this ends without a `reply`, the request's drop answers: all-ones to a read.
    fn dispatch(&self, in_flight: InFlight) {
        let counters = &self.shared.counters;
        match in_flight.request().parse() {
            Ok(Request::Access(access)) => self.access(in_flight, access),
            Ok(Request::Invalidate) => {
                counters.invalidations.add_one();
                self.shared.ram.invalidate();
            }
            Ok(Request::TimeOffset) => {}
            Err(bad) => self.bad_request(in_flight.vcpu(), bad),
        }
    }

    fn access(&self, in_flight: InFlight, access: Access) {
        let Shared { counters, bus, .. } = self.shared.as_ref();
        match access.direction {
            Direction::Read => counters.reads.add_one(),
            Direction::Write => counters.writes.add_one(),
        }
        match bus.awaited(access.space, access.addr) {
            None => self.shared.carry(in_flight, &access),
            Some(device) => {
                let (shared, vcpu) = (Arc::clone(&self.shared), in_flight.vcpu());
                tracing::debug!(name: "ioreq.early", vcpu, ?access, "An access waits for its device");
                device.then(move || {
                    shared.contain(|| shared.carry(in_flight, &access), format_args!("vCPU {vcpu}'s access"));
                });
            }
        }
    }

    fn drain_buffered(&self) -> bool {
        let Shared { counters, bus, ram, .. } = self.shared.as_ref();
        let Some((ring, _)) = self.server.buffered() else { return false };
        ring.drain(|entry| match entry {
            Ok(access) => {
                counters.posted_writes.add_one();
                // Nobody waits for it, so nothing is to be done when it completes.
                self.shared.contain(|| drop(perform(&access, bus, ram.as_ref())), format_args!("a buffered write"));
            }
            Err(bad) => self.bad_entry(bad),
        })
    }

    fn bad_request(&self, vcpu: u8, bad: BadRequest) {
        self.shared.counters.bad_requests.add_one();
        tracing::warn!(name: "ioreq.bad_request", vcpu, %bad, "A request that Xen does not make");
    }

    fn bad_entry(&self, bad: BadEntry) {
        self.shared.counters.bad_requests.add_one();
        tracing::warn!(name: "ioreq.bad_entry", %bad, "A buffered write that Xen does not make");
    }
}

impl Drop for Worker {
    /// However serving ends, or if it never began: no vCPU is left waiting.
    fn drop(&mut self) {
        if self.server.is_released() {
            return;
        }
        if let Err(error) = self.server.set_enabled(false)
            && !error.guest_is_gone()
        {
            tracing::warn!(name: "ioreq.not_disabled", %error, "Requests may come that nobody answers");
        }
        // No request comes any more; these are the last.
        self.pass();
    }
}

impl Shared {
    /// Does what an access asks and answers it, now or when the device says.
    fn carry(&self, in_flight: InFlight, access: &Access) {
        match perform(access, &self.bus, self.ram.as_ref()) {
            Ok(done) if done.later.is_empty() => in_flight.reply(done.value),
            Ok(done) => answer_after(done.later, in_flight),
            Err(no_ram) => self.no_ram(in_flight.vcpu(), no_ram),
        }
    }

    fn no_ram(&self, vcpu: u8, no_ram: NoRam) {
        self.counters.bad_requests.add_one();
        tracing::warn!(name: "ioreq.no_ram", vcpu, %no_ram, "A string instruction's operand is not in memory");
    }

    /// A device that panics costs the access, not the guest: unwinding drops the request, which answers it.
    fn contain(&self, access: impl FnOnce(), whose: std::fmt::Arguments<'_>) {
        if catch_unwind(AssertUnwindSafe(access)).is_err() {
            self.counters.panics.add_one();
            tracing::error!(name: "ioreq.device_panicked", "A device panicked in {whose}");
        }
    }
}

/// Answers when the last of these is complete.
fn answer_after(later: Vec<Deferral>, in_flight: InFlight) {
    let in_flight = Arc::new(in_flight);
    for deferral in later {
        let part = Arc::clone(&in_flight);
        deferral.then(move || drop(part));
    }
}
