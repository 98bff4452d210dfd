//! The lane's side of a disk: requests from the ring to the engine, results from the engine to the ring.
//!
//! A pass takes what the ring has, as far as the disk's limits let it, starts it all with one kick of the engine, and gives
//! back what has ended; what ends later wakes the lane through the engine's source.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use virtio_backend::{Fault, GuestFault, Request, Ring, Wake, Worker, count_failure};

use crate::cache_mode::Promise;
use crate::config::SERIAL_LEN;
use crate::engine::{Done, Engine, Op, Transfer};
use crate::hold::Holder;
use crate::limits::Limits;
use crate::request::{Command, HEADER_LEN, Io, Refusal, Rules, Status};
use crate::shared::Shared;

/// Works one queue of a disk.
pub(crate) struct DiskWorker {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) rules: Rules,
    /// What the driver negotiated.
    pub(crate) features: u64,
    pub(crate) serial: [u8; SERIAL_LEN],
    pub(crate) poll: Duration,
    pub(crate) shared: Arc<Shared>,
    /// Those of the disk's limits.
    pub(crate) timers: Vec<OwnedFd>,
    /// A request is left in the ring until a timer tells.
    pub(crate) waits: bool,
    /// Where requests go that the host failed, if they are to wait.
    pub(crate) holder: Option<Holder>,
    /// The lane is to end with what is in flight, and nothing waits any more.
    pub(crate) drains: bool,
    /// By head: what the engine works on.
    pub(crate) works_on: Vec<Option<Work>>,
}

/// A request that the engine works on.
pub(crate) struct Work {
    request: Request,
    io: Io,
    step: Step,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// When this is done, so is the request.
    Last,
    /// A flush is to follow.
    BeforeFlush,
    /// The flush that follows.
    Flush,
}

/// Requests from the ring.
impl DiskWorker {
    fn serve(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        self.rules.capacity = self.shared.capacity.sectors();
        let shared = Arc::clone(&self.shared);
        match &shared.limits {
            None => ring.serve(|ring, request| {
                let command = self.parse(&request)?;
                self.carry_out(ring, request, command)
            }),
            Some(limits) => self.serve_within(limits, ring),
        }
    }

    fn serve_within(&mut self, limits: &Limits, ring: &mut Ring) -> Result<(), Fault> {
        ring.decline_kicks()?;
        for _ in 0..ring.size() {
            let Some(request) = ring.pop()? else { break };
            let command = self.parse(&request)?;
            if let Ok(Command::Io(io)) = command
                && !limits.admit(io).map_err(host_fault)?
            {
                // A timer wakes the lane for it; a kick would not be worth the trap.
                ring.unpop(request);
                if !mem::replace(&mut self.waits, true) {
                    self.shared.counters.throttled.fetch_add(1, Relaxed);
                }
                return Ok(());
            }
            self.carry_out(ring, request, command)?;
        }
        self.waits = false;
        ring.ask_for_kicks();
        Ok(())
    }

    fn parse(&self, request: &Request) -> Result<Result<Command, Refusal>, Fault> {
        if request.writable.is_empty() {
            let what = "has no room for a status byte";
            return Err(GuestFault::Request { head: request.head(), what }.into());
        }
        Ok(self.rules.parse(&request.readable, &request.writable))
    }

    fn carry_out(&mut self, ring: &mut Ring, request: Request, command: Result<Command, Refusal>) -> Result<(), Fault> {
        match command {
            Ok(Command::GetId) => {
                request.writable.write(0, &self.serial);
                answer(ring, request, Status::Ok, SERIAL_LEN)
            }
            Ok(Command::Io(Io::Flush)) if self.shared.flush_failed() => self.fail(ring, request),
            Ok(Command::Io(io)) => self.submit(request, io),
            Err(Refusal { status, reason }) => {
                self.shared.counters.refusals.fetch_add(1, Relaxed);
                tracing::debug!(name: "disk.refused", head = request.head(), reason);
                answer(ring, request, status, 0)
            }
        }
    }
}

/// Requests to the engine, and back.
impl DiskWorker {
    fn submit(&mut self, mut request: Request, io: Io) -> Result<(), Fault> {
        let promise = self.shared.cache.promise(self.features);
        let stable = promise == Promise::Stable;
        let op = match io {
            Io::Read(span) => Op::Read(Transfer { memory: mem::take(&mut request.writable), at: 0, span }),
            Io::Write(span) => {
                let memory = mem::take(&mut request.readable);
                Op::Write { transfer: Transfer { memory, at: HEADER_LEN, span }, stable }
            }
            Io::Flush => Op::Flush,
            Io::Discard(span) => Op::Discard(span),
            Io::WriteZeroes { span, may_unmap } => Op::WriteZeroes { span, may_unmap, stable },
        };
        let writes = matches!(io, Io::Write(_) | Io::WriteZeroes { .. });
        let step = if writes && promise == Promise::StableWithAllBefore { Step::BeforeFlush } else { Step::Last };
        self.start(Work { request, io, step }, op)
    }

    fn start(&mut self, work: Work, op: Op) -> Result<(), Fault> {
        let (head, io) = (work.request.head(), work.io);
        let place = self.works_on.get_mut(usize::from(head)).filter(|place| place.is_none());
        let place = place.ok_or_else(|| Fault::Bug(format!("no place for request {head}")))?;
        *place = Some(work);
        tracing::trace!(name: "disk.submit", head, ?io);
        self.engine.submit(head, op).map_err(|error| Fault::Bug(format!("request {head} not submitted: {error}")))
    }

    /// Starts what was submitted and gives back what has ended.
    fn settle(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        loop {
            self.engine.kick().map_err(host_fault)?;
            if !self.give_back(ring)? {
                return Ok(());
            }
        }
    }

    /// True if some of it goes on.
    fn give_back(&mut self, ring: &mut Ring) -> Result<bool, Fault> {
        let mut goes_on = false;
        while let Some(done) = self.engine.reap() {
            goes_on |= self.complete(ring, done)?;
        }
        Ok(goes_on)
    }

    /// True if another step follows.
    fn complete(&mut self, ring: &mut Ring, done: Done) -> Result<bool, Fault> {
        let work = self.works_on.get_mut(usize::from(done.tag)).and_then(Option::take);
        let mut work = work.ok_or_else(|| Fault::Bug(format!("request {} is not worked on", done.tag)))?;
        let Work { request, io, step } = &mut work;
        let mut written = 0;
        match io {
            Io::Read(_) => {
                request.writable = done.memory;
                written = request.writable.len().saturating_sub(1);
            }
            _ => request.readable = done.memory,
        }
        let is_flush = *io == Io::Flush || *step == Step::Flush;
        match done.result {
            Ok(()) if *step == Step::BeforeFlush => {
                *step = Step::Flush;
                self.start(work, Op::Flush)?;
                return Ok(true);
            }
            // Of two flushes at a time the kernel tells one of the failure that concerns both.
            Ok(()) if is_flush && self.shared.flush_failed() => self.fail(ring, work.request)?,
            Ok(()) => {
                self.shared.counters.done(work.io);
                answer(ring, work.request, Status::Ok, written)?;
            }
            Err(error) => {
                self.note_failure(*io, is_flush, &error);
                self.hold_or_fail(ring, work, is_flush, &error)?;
            }
        }
        Ok(false)
    }
}

/// What the host does not do.
impl DiskWorker {
    /// Not held is what no second try could mend: a flush, as the kernel has forgotten what it could not write; what the
    /// storage never does; what lies beyond the end of a disk that has become smaller.
    fn hold_or_fail(&mut self, ring: &mut Ring, work: Work, is_flush: bool, error: &io::Error) -> Result<(), Fault> {
        let Work { request, io, .. } = work;
        let is_hopeless = is_flush || error.kind() == io::ErrorKind::InvalidInput || self.is_beyond_end(io);
        match &mut self.holder {
            Some(holder) if !self.drains && !is_hopeless => {
                holder.keep(request, io, error);
                Ok(())
            }
            _ => self.fail(ring, request),
        }
    }

    fn is_beyond_end(&self, io: Io) -> bool {
        io.span().is_some_and(|span| span.offset + span.len > self.shared.capacity.bytes())
    }

    /// Tries again what is held, if the operator has said so since.
    fn retry(&mut self) -> Result<(), Fault> {
        let Some(holder) = &mut self.holder else { return Ok(()) };
        holder.take_to_retry().into_iter().try_for_each(|(request, io)| self.submit(request, io))
    }

    fn fail(&self, ring: &mut Ring, request: Request) -> Result<(), Fault> {
        self.shared.counters.errors.fetch_add(1, Relaxed);
        answer(ring, request, Status::IoError, 0)
    }

    fn note_failure(&self, io: Io, is_flush: bool, error: &io::Error) {
        if is_flush {
            self.shared.note_failed_flush();
        }
        if let Some(failures) = count_failure(&self.shared.counters.host_failures) {
            tracing::error!(name: "disk.io_error", ?io, %error, failures, "The host failed a request of the disk");
        }
    }
}

impl Worker for DiskWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let Some(ring) = rings.first_mut() else { return Ok(()) };
        if self.waits || matches!(wake, Wake::Queue(_)) {
            self.serve(ring)?;
        }
        self.retry()?;
        self.settle(ring)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let bell = self.holder.iter().map(|holder| holder.bell().as_fd());
        self.engine.source().into_iter().chain(self.timers.iter().map(AsFd::as_fd)).chain(bell).collect()
    }

    fn polls_for(&self) -> Duration {
        self.poll
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        let Some(ring) = rings.first_mut() else { return Ok(()) };
        self.drains = true;
        let held = self.holder.as_mut().map(Holder::take_all).unwrap_or_default();
        held.into_iter().try_for_each(|(request, _io)| self.fail(ring, request))?;
        while self.engine.in_flight() > 0 {
            self.engine.wait().map_err(host_fault)?;
            self.give_back(ring)?;
        }
        self.drains = false;
        Ok(())
    }
}

/// Writes the status byte, the last of the writable part, and gives the request back. `written` bytes were put before
/// it; the length told to the driver counts what was written from the first byte on without a gap (§2.7.8.1).
fn answer(ring: &mut Ring, request: Request, status: Status, written: usize) -> Result<(), Fault> {
    let status_at = request.writable.len().saturating_sub(1);
    request.writable.write(status_at, &[status as u8]);
    let written = if written == status_at { written + 1 } else { written };
    ring.push(request, written)
}

fn host_fault(source: io::Error) -> Fault {
    Fault::Host { doing: "submitting disk I/O", source }
}
