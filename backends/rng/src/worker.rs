//! Fills the driver's buffers, on the lane's thread.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use guest_memory::Buffers;
use virtio_backend::{Fault, Rate, RateLimit, Ring, Wake, Worker, count_failure};

use crate::Source;
use crate::counters::Counters;
use crate::device::MAX_CHAIN;
use crate::lent::Lent;

/// How often a source that fails is asked again, however often the driver kicks.
const RETRIES: Rate = Rate { per_second: 10, burst: 1 };

/// A guest that has used up its rate waits for this many bytes: a seed's worth, and not one byte after the other.
const WORTHWHILE: u64 = 64;

/// Works the queue. It holds no request: a buffer that cannot be filled yet stays in the ring.
pub(crate) struct RngWorker {
    source: Arc<dyn Source>,
    rate: Option<RateLimit>,
    lent: Arc<Lent>,
    retries: RateLimit,
    /// The source failed when it was last asked.
    failing: bool,
    /// The rate was used up when it was last asked for.
    waiting: bool,
    /// Between source and guest, since guest memory is nothing to borrow.
    bytes: Vec<u8>,
    counters: Arc<Counters>,
}

impl RngWorker {
    pub(crate) fn new(source: Arc<dyn Source>, lent: Arc<Lent>, counters: Arc<Counters>) -> io::Result<Self> {
        let (rate, retries) = (lent.borrow()?, RateLimit::new(RETRIES)?);
        Ok(Self { source, rate, lent, retries, failing: false, waiting: false, bytes: vec![0; MAX_CHAIN], counters })
    }

    /// Fills buffers until there are no more, or one has to wait.
    fn serve(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        ring.decline_kicks()?;
        for _ in 0..ring.size() {
            let Some(request) = ring.pop()? else { break };
            let Some(written) = self.fill(&request.writable).map_err(host_fault)? else {
                // The timer wakes the lane for it; a kick would not be worth the trap.
                ring.unpop(request);
                return Ok(());
            };
            ring.push(request, written)?;
        }
        ring.ask_for_kicks();
        Ok(())
    }

    /// Returns how many bytes were written; `None` if there are none as yet.
    ///
    /// A chain without a writable byte, which a driver must not make (§5.4.6.1), is done as it is.
    fn fill(&mut self, writable: &Buffers) -> io::Result<Option<usize>> {
        if writable.is_empty() {
            return Ok(Some(0));
        }
        let allowed = self.allowance(writable.len().min(self.bytes.len()))?;
        let drawn = if allowed > 0 { self.draw(allowed)? } else { 0 };
        if let Some(rate) = &mut self.rate {
            rate.give_back((allowed - drawn) as u64);
        }
        self.counters.bytes.fetch_add(drawn as u64, Relaxed);
        let random = self.bytes.get(..drawn).unwrap_or_default();
        Ok((drawn > 0).then(|| writable.write(0, random)))
    }

    /// Takes up to `wanted` bytes off the rate. Where that is nothing, its timer is set.
    fn allowance(&mut self, wanted: usize) -> io::Result<usize> {
        let Some(rate) = &mut self.rate else { return Ok(wanted) };
        let allowed = rate.take(wanted as u64, WORTHWHILE.min(wanted as u64))?;
        if !mem::replace(&mut self.waiting, allowed == 0) && self.waiting {
            self.counters.waits.fetch_add(1, Relaxed);
        }
        Ok(usize::try_from(allowed).unwrap_or(wanted))
    }

    /// Puts random bytes into `self.bytes`, at most `len`. Where that is none because the source fails, its timer is
    /// set.
    fn draw(&mut self, len: usize) -> io::Result<usize> {
        let bytes = self.bytes.get_mut(..len).unwrap_or_default();
        loop {
            if self.failing && self.retries.take(1, 1)? == 0 {
                return Ok(0);
            }
            match self.source.fill(bytes) {
                Ok(drawn) if (1..=bytes.len()).contains(&drawn) => {
                    self.failing = false;
                    return Ok(drawn);
                }
                outcome => {
                    self.failing = true;
                    note_failure(&self.counters, outcome.err());
                }
            }
        }
    }
}

fn note_failure(counters: &Counters, error: Option<io::Error>) {
    if let Some(failures) = count_failure(&counters.source_failures) {
        let error = error.map_or_else(|| "none given".to_owned(), |error| error.to_string());
        tracing::error!(name: "rng.source_failed", error, failures, "The host gives no random bytes; the guest waits");
    }
}

fn host_fault(source: io::Error) -> Fault {
    Fault::Host { doing: "setting a timer", source }
}

impl Drop for RngWorker {
    fn drop(&mut self) {
        self.lent.give_back(self.rate.take());
    }
}

impl Worker for RngWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        if let Wake::Source(_) = wake {
            self.retries.silence();
            self.rate.iter().for_each(RateLimit::silence);
        }
        rings.first_mut().map_or(Ok(()), |ring| self.serve(ring))
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.rate.iter().chain([&self.retries]).map(AsFd::as_fd).collect()
    }
}
