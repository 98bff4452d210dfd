//! The lane's side of a disk: requests from the ring to the engine, results from the engine to the ring.
//!
//! A pass takes what the ring has, starts it all with one kick of the engine, and gives back what has ended; what ends
//! later wakes the lane through the engine's source.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use virtio_backend::{Fault, GuestFault, Request, Ring, Wake, Worker, count_failure};

use crate::config::SERIAL_LEN;
use crate::counters::Counters;
use crate::engine::{Done, Engine, Op, Transfer};
use crate::request::{Command, HEADER_LEN, Io, Refusal, Rules, Status};

/// What the lanes of a disk share from one reset to the next.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// A flush failed. The kernel has told so once and forgets what it could not write, so no later flush can be
    /// believed: the driver has to see every one of them fail.
    flush_failed: AtomicBool,
}

/// Works one queue of a disk.
pub(crate) struct DiskWorker {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) rules: Rules,
    /// Writes are durable before they are acknowledged.
    pub(crate) stable: bool,
    pub(crate) serial: [u8; SERIAL_LEN],
    pub(crate) life: Arc<Life>,
    pub(crate) counters: Arc<Counters>,
    /// By head: what the engine works on.
    pub(crate) held: Vec<Option<(Request, Io)>>,
}

impl DiskWorker {
    fn take(&mut self, ring: &mut Ring, request: Request) -> Result<(), Fault> {
        let head = request.head();
        if request.writable.is_empty() {
            let what = "has no room for a status byte";
            return Err(GuestFault::Request { head, what }.into());
        }
        match self.rules.parse(&request.readable, &request.writable) {
            Ok(Command::GetId) => {
                request.writable.write(0, &self.serial);
                answer(ring, request, Status::Ok, SERIAL_LEN)
            }
            Ok(Command::Io(Io::Flush)) if self.flush_failed() => self.fail(ring, request),
            Ok(Command::Io(io)) => self.submit(request, io),
            Err(Refusal { status, reason }) => {
                self.counters.refusals.fetch_add(1, Relaxed);
                tracing::debug!(name: "disk.refused", head, reason);
                answer(ring, request, status, 0)
            }
        }
    }

    fn submit(&mut self, mut request: Request, io: Io) -> Result<(), Fault> {
        let (head, stable) = (request.head(), self.stable);
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
        let place = self.held.get_mut(usize::from(head)).filter(|place| place.is_none());
        let place = place.ok_or_else(|| Fault::Bug(format!("no place for request {head}")))?;
        *place = Some((request, io));
        tracing::trace!(name: "disk.submit", head, ?io);
        self.engine.submit(head, op).map_err(|error| Fault::Bug(format!("request {head} not submitted: {error}")))
    }

    /// Starts what was submitted and gives back what has ended.
    fn settle(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        self.engine.kick().map_err(host_fault)?;
        self.give_back(ring)
    }

    fn give_back(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        while let Some(done) = self.engine.reap() {
            self.complete(ring, done)?;
        }
        Ok(())
    }

    fn complete(&mut self, ring: &mut Ring, done: Done) -> Result<(), Fault> {
        let held = self.held.get_mut(usize::from(done.tag)).and_then(Option::take);
        let (mut request, io) = held.ok_or_else(|| Fault::Bug(format!("request {} is not held", done.tag)))?;
        let mut written = 0;
        match io {
            Io::Read(_) => {
                request.writable = done.memory;
                written = request.writable.len().saturating_sub(1);
            }
            _ => request.readable = done.memory,
        }
        match done.result {
            // Of two flushes at a time the kernel tells one of the failure that concerns both.
            Ok(()) if io == Io::Flush && self.flush_failed() => self.fail(ring, request),
            Ok(()) => {
                self.counters.done(io);
                answer(ring, request, Status::Ok, written)
            }
            Err(error) => {
                self.note_failure(io, &error);
                self.fail(ring, request)
            }
        }
    }

    fn flush_failed(&self) -> bool {
        self.life.flush_failed.load(Relaxed)
    }

    fn fail(&self, ring: &mut Ring, request: Request) -> Result<(), Fault> {
        self.counters.errors.fetch_add(1, Relaxed);
        answer(ring, request, Status::IoError, 0)
    }

    fn note_failure(&self, io: Io, error: &io::Error) {
        if io == Io::Flush {
            self.life.flush_failed.store(true, Relaxed);
        }
        if let Some(failures) = count_failure(&self.counters.host_failures) {
            tracing::error!(name: "disk.io_error", ?io, %error, failures, "The host failed a request of the disk");
        }
    }
}

impl Worker for DiskWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let Some(ring) = rings.first_mut() else { return Ok(()) };
        if let Wake::Queue(_) = wake {
            ring.serve(|ring, request| self.take(ring, request))?;
        }
        self.settle(ring)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.engine.source().into_iter().collect()
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        let Some(ring) = rings.first_mut() else { return Ok(()) };
        while self.engine.in_flight() > 0 {
            self.engine.wait().map_err(host_fault)?;
            self.give_back(ring)?;
        }
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
