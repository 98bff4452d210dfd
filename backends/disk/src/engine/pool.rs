//! A pool of threads for storage whose calls return only when they are done, as those of image formats do.
//!
//! All lanes of a disk share one pool. Its helpers come when there is work for them and go when there has been none for
//! a while, or when the last engine ends. What a request moves goes through a block of the helper's own, step by step:
//! whoever implements [`Blocking`] sees plain memory, never the guest's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_memory::Buffers;
use rustix::event::{EventfdFlags, eventfd};

use super::bounce::{BLOCK_SIZE, Block};
use super::{Done, Engine, Op, Span, Transfer};

/// Threads of one disk: as many calls as storage has use for at a time, where each waits for the one before it.
const HELPERS: usize = 16;

/// How long a helper waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Storage with calls that block. They may come from several threads at a time.
pub(crate) trait Blocking: Send + Sync + 'static {
    /// Fills `into` with what is at `offset`, in bytes.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Puts `from` at `offset`, in bytes.
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Brings every write that is done to persistent storage.
    fn flush(&self) -> io::Result<()>;

    /// The contents of `span` do not matter any more.
    fn discard(&self, span: Span) -> io::Result<()>;

    /// Reads of `span` give zeroes afterwards; what is behind it may be given back.
    fn write_zeroes(&self, span: Span, may_unmap: bool) -> io::Result<()>;
}

/// The threads that work on one storage.
pub(crate) struct Pool(Arc<Shared>);

impl Pool {
    /// A pool without threads as yet, which are to be called `name`.
    pub(crate) fn new(storage: impl Blocking, name: &str) -> Self {
        Self(Arc::new(Shared {
            storage: Box::new(storage),
            name: name.to_owned(),
            state: Mutex::default(),
            work: Condvar::new(),
        }))
    }

    /// Brings every write that is done to persistent storage, on the caller's time.
    ///
    /// # Errors
    /// Some of it may be lost.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.0.storage.flush()
    }

    /// An engine for tags below `depth`. One without `helpers` works on the time of whoever owns it.
    ///
    /// # Errors
    /// The host has no descriptor to wake its owner with.
    pub(crate) fn open_engine(&self, helpers: bool, depth: u16) -> io::Result<Pooled> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.0.lock().engines += 1;
        Ok(Pooled {
            shared: Arc::clone(&self.0),
            helpers: if helpers { HELPERS } else { 0 },
            outbox: Arc::new(Outbox { done: Mutex::default(), arrived: Condvar::new(), bell }),
            submitted: Vec::new(),
            done: VecDeque::new(),
            busy: vec![false; usize::from(depth)],
            in_flight: 0,
        })
    }
}

/// What engines and helpers share.
struct Shared {
    storage: Box<dyn Blocking>,
    name: String,
    state: Mutex<State>,
    /// There is a job, or no engine any more.
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    engines: usize,
    /// Helpers that have not ended.
    helpers: usize,
    /// Those of them that wait for a job.
    idle: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes jobs to helpers, of which there may be `most`. Leaves them where they are if there is no helper.
    fn pass_on(self: &Arc<Self>, jobs: &mut Vec<Job>, most: usize) {
        let mut state = self.lock();
        let wanted = (state.jobs.len() + jobs.len()).saturating_sub(state.idle);
        for _ in 0..wanted.min(most.saturating_sub(state.helpers)) {
            let shared = Arc::clone(self);
            match thread::Builder::new().name(self.name.clone()).spawn(move || shared.help()) {
                Ok(thread) => {
                    state.threads.retain(|thread| !thread.is_finished());
                    state.threads.push(thread);
                    state.helpers += 1;
                }
                // Those there are do the work, if more slowly.
                Err(_no_thread) => break,
            }
        }
        if state.helpers == 0 {
            return;
        }
        state.jobs.extend(jobs.drain(..));
        drop(state);
        self.work.notify_all();
    }

    /// The life of a helper.
    fn help(&self) {
        let mut block = None;
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job.run(&*self.storage, &mut block);
                state = self.lock();
                continue;
            }
            if state.engines == 0 {
                break;
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.helpers -= 1;
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.engines -= 1;
        if state.engines > 0 {
            return;
        }
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.work.notify_all();
        // The storage is free for another as soon as the last engine is gone.
        for thread in threads {
            drop(thread.join());
        }
    }
}

/// An operation and where to say that it is done.
struct Job {
    tag: u16,
    op: Op,
    outbox: Arc<Outbox>,
}

impl Job {
    fn run(self, storage: &dyn Blocking, block: &mut Option<Block>) {
        let Self { tag, op, outbox } = self;
        // Whatever the storage does, the guest's memory comes back.
        let result = catch_unwind(AssertUnwindSafe(|| perform(storage, &op, block)))
            .unwrap_or_else(|_panic| Err(io::Error::other("The storage panicked")));
        outbox.put(Done { tag, memory: into_memory(op), result });
    }
}

fn into_memory(op: Op) -> Buffers {
    match op {
        Op::Read(transfer) | Op::Write { transfer, .. } => transfer.memory,
        Op::Flush | Op::Discard(_) | Op::WriteZeroes { .. } => Buffers::new(),
    }
}

fn perform(storage: &dyn Blocking, op: &Op, block: &mut Option<Block>) -> io::Result<()> {
    match op {
        Op::Read(transfer) => step_by_step(transfer, block, |offset, at, bytes| {
            storage.read(offset, bytes)?;
            transfer.memory.write(at, bytes);
            Ok(())
        }),
        Op::Write { transfer, stable } => {
            step_by_step(transfer, block, |offset, at, bytes| {
                transfer.memory.read(at, bytes);
                storage.write(offset, bytes)
            })?;
            flush_if(*stable, storage)
        }
        Op::Flush => storage.flush(),
        Op::Discard(span) => storage.discard(*span),
        Op::WriteZeroes { span, may_unmap, stable } => {
            storage.write_zeroes(*span, *may_unmap)?;
            flush_if(*stable, storage)
        }
    }
}

fn flush_if(stable: bool, storage: &dyn Blocking) -> io::Result<()> {
    if stable { storage.flush() } else { Ok(()) }
}

/// Calls `step` with pieces of the transfer: where on the disk, where in memory, and the bytes to go through. Pieces
/// end at multiples of the block's size, so that no cluster is touched by two of them that need not be.
fn step_by_step(
    transfer: &Transfer,
    block: &mut Option<Block>,
    mut step: impl FnMut(u64, usize, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let block = match block {
        Some(block) => block,
        None => block.insert(Block::new().ok_or(io::ErrorKind::OutOfMemory)?),
    };
    let Span { mut offset, len } = transfer.span;
    let (end, mut at) = (offset + len, transfer.at);
    while offset < end {
        let until_boundary = BLOCK_SIZE as u64 - offset % BLOCK_SIZE as u64;
        let bytes = block.start(usize::try_from(until_boundary.min(end - offset)).unwrap_or(BLOCK_SIZE));
        let moved = bytes.len();
        step(offset, at, bytes)?;
        offset += moved as u64;
        at += moved;
    }
    Ok(())
}

/// What helpers have done for one engine.
struct Outbox {
    done: Mutex<Vec<Done>>,
    arrived: Condvar,
    /// An eventfd. It is never read: each write is an edge, which is all that a lane waits for.
    bell: OwnedFd,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, done: Done) {
        let mut list = self.lock();
        list.push(done);
        // What lies there already has rung.
        let is_first = list.len() == 1;
        drop(list);
        if is_first {
            // Fails only after 2^64 rings.
            let _rung = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
        self.arrived.notify_one();
    }
}

/// An engine whose operations are done by a pool.
pub(crate) struct Pooled {
    shared: Arc<Shared>,
    /// The most helpers there may be.
    helpers: usize,
    outbox: Arc<Outbox>,
    submitted: Vec<Job>,
    done: VecDeque<Done>,
    /// By tag.
    busy: Vec<bool>,
    in_flight: usize,
}

impl Pooled {
    fn collect(&mut self) {
        self.done.extend(self.outbox.lock().drain(..));
    }

    /// Operations that are with the pool.
    fn is_awaited(&self) -> bool {
        self.in_flight > self.done.len() + self.submitted.len()
    }

    fn await_one(&mut self) {
        let arrived = self.outbox.arrived.wait_while(self.outbox.lock(), |list| list.is_empty());
        drop(arrived);
        self.collect();
    }
}

impl Engine for Pooled {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        let busy = self.busy.get_mut(usize::from(tag)).ok_or(io::ErrorKind::InvalidInput)?;
        if std::mem::replace(busy, true) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.in_flight += 1;
        self.submitted.push(Job { tag, op, outbox: Arc::clone(&self.outbox) });
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        if !self.submitted.is_empty() {
            self.shared.pass_on(&mut self.submitted, self.helpers);
            let mut block = None;
            for job in self.submitted.drain(..) {
                job.run(&*self.shared.storage, &mut block);
            }
        }
        self.collect();
        Ok(())
    }

    fn reap(&mut self) -> Option<Done> {
        let done = self.done.pop_front()?;
        *self.busy.get_mut(usize::from(done.tag))? = false;
        self.in_flight -= 1;
        Some(done)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.kick()?;
        if self.done.is_empty() && self.is_awaited() {
            self.await_one();
        }
        Ok(())
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.outbox.bell.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        while self.is_awaited() {
            self.await_one();
        }
        self.shared.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { offset: 0, len: 512 };

    /// Storage whose flushes wait until as many have come as it was made for, and whose discards panic.
    #[derive(Default)]
    struct Meeting {
        wanted: usize,
        there: Mutex<usize>,
        all_there: Condvar,
    }

    impl Blocking for Meeting {
        fn read(&self, _offset: u64, _into: &mut [u8]) -> io::Result<()> {
            Ok(())
        }

        fn write(&self, _offset: u64, _from: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            let mut there = self.there.lock().unwrap();
            *there += 1;
            self.all_there.notify_all();
            drop(self.all_there.wait_while(there, |there| *there < self.wanted).unwrap());
            Ok(())
        }

        fn discard(&self, _span: Span) -> io::Result<()> {
            panic!("as a bug would");
        }

        fn write_zeroes(&self, _span: Span, _may_unmap: bool) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    fn run(engine: &mut Pooled, ops: Vec<Op>) -> Vec<(u16, bool)> {
        let count = ops.len();
        for (tag, op) in (0..).zip(ops) {
            engine.submit(tag, op).unwrap();
        }
        let mut ended = Vec::new();
        while ended.len() < count {
            engine.wait().unwrap();
            ended.extend(std::iter::from_fn(|| engine.reap()).map(|done| (done.tag, done.result.is_ok())));
        }
        ended.sort_unstable();
        ended
    }

    #[test]
    fn as_many_operations_as_there_may_be_helpers_run_at_a_time() {
        let pool = Pool::new(Meeting { wanted: HELPERS, ..Meeting::default() }, "test");
        let mut engine = pool.open_engine(true, 64).unwrap();
        let ended = run(&mut engine, (0..40).map(|_| Op::Flush).collect());
        assert_eq!(ended, (0..40).map(|tag| (tag, true)).collect::<Vec<_>>());
        assert!(pool.0.lock().helpers <= HELPERS);
    }

    #[test]
    fn helpers_end_with_the_last_engine_and_come_back_for_the_next() {
        let pool = Pool::new(Meeting::default(), "test");
        for _ in 0..2 {
            let mut engines = [pool.open_engine(true, 8).unwrap(), pool.open_engine(true, 8).unwrap()];
            engines.iter_mut().for_each(|engine| assert_eq!(run(engine, vec![Op::Flush]), [(0, true)]));
            let [first, second] = engines;
            drop(first);
            assert!(pool.0.lock().helpers > 0);
            drop(second);
            assert_eq!(pool.0.lock().helpers, 0);
        }
    }

    #[test]
    fn a_panic_or_an_error_is_that_of_one_operation() {
        let pool = Pool::new(Meeting::default(), "test");
        for helpers in [true, false] {
            let mut engine = pool.open_engine(helpers, 8).unwrap();
            let zeroes = Op::WriteZeroes { span: SPAN, may_unmap: false, stable: false };
            let ended = run(&mut engine, vec![Op::Discard(SPAN), zeroes, Op::Flush]);
            assert_eq!(ended, [(0, false), (1, false), (2, true)]);
        }
    }

    #[test]
    fn a_tag_is_in_use_until_it_is_reaped() {
        let pool = Pool::new(Meeting::default(), "test");
        let mut engine = pool.open_engine(true, 1).unwrap();
        assert_eq!(engine.submit(1, Op::Flush).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        engine.submit(0, Op::Flush).unwrap();
        assert_eq!(engine.submit(0, Op::Flush).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        while engine.reap().is_none() {
            engine.wait().unwrap();
        }
        assert_eq!(engine.in_flight(), 0);
        assert!(engine.submit(0, Op::Flush).is_ok());
    }

    /// An engine that is dropped with work under way waits for it.
    #[test]
    fn a_dropped_engine_has_let_go_of_everything() {
        let pool = Pool::new(Meeting { wanted: 3, ..Meeting::default() }, "test");
        let mut engine = pool.open_engine(true, 8).unwrap();
        (0..3).for_each(|tag| engine.submit(tag, Op::Flush).unwrap());
        engine.kick().unwrap();
        let outbox = Arc::clone(&engine.outbox);
        drop(engine);
        assert_eq!(Arc::strong_count(&outbox), 1);
    }
}
