//! io_uring: one system call starts all that a pass submitted, and what the page cache answers is collected after it
//! without another.
//!
//! The ring's own descriptor wakes the lane: a poll looks whether there is something to collect at the moment the lane
//! would sleep. An eventfd would not do better. Registered for all completions it wakes the lane for those it has
//! collected already; registered with IORING_REGISTER_EVENTFD_ASYNC it is silent about all that do not end on one of
//! the kernel's worker threads, such as direct I/O and reads that miss the page cache. For a like reason
//! IORING_SETUP_DEFER_TASKRUN is not used: its completions do not wake a thread that sleeps in epoll.
#![expect(unsafe_code, reason = "the kernel works on memory after the call that named it")]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::bounce::{BLOCKS, Pool};
use super::runs::{Run, Runs};
use super::task::{Call, Task, Way};
use super::{Done, Engine, Op, Target, calls};

/// The file, as the ring knows it: registered once, it needs no reference count for each operation.
const FILE: types::Fixed = types::Fixed(0);

/// An engine whose operations run in the kernel while the lane does other things.
pub struct Uring {
    ring: IoUring,
    target: Target,
    /// By tag. Never moves while the engine lives: the kernel reads the iovecs that are in here.
    tasks: Box<[Option<Task>]>,
    runs: Runs,
    /// Tags that wait for a block of bounce memory.
    waiting: VecDeque<u16>,
    done: VecDeque<(u16, io::Result<()>)>,
    pool: Pool,
    /// Calls pushed to the ring whose completion has not been seen.
    outstanding: usize,
    in_flight: usize,
}

impl Uring {
    /// An engine for `target`, for tags below `depth`.
    ///
    /// # Errors
    /// The host does not allow io_uring, or its kernel is older than 5.6.
    pub fn new(target: Target, depth: u16) -> io::Result<Self> {
        let ring = new_ring(u32::from(depth))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "The kernel's io_uring lacks operations on files"));
        }
        let files = [Some(&target.file), target.turn.as_ref()];
        let files: Vec<_> = files.into_iter().flatten().map(|file| file.as_raw_fd()).collect();
        ring.submitter().register_files(&files)?;
        let depth = usize::from(depth);
        Ok(Self {
            ring,
            target,
            tasks: (0..depth).map(|_| None).collect(),
            runs: Runs::new(depth),
            waiting: VecDeque::with_capacity(depth),
            done: VecDeque::with_capacity(depth),
            pool: Pool::new(BLOCKS),
            outstanding: 0,
            in_flight: 0,
        })
    }

    /// Starts transfers that wait for a block, as many as there are blocks for.
    fn start_waiting(&mut self) {
        while let Some(&tag) = self.waiting.front() {
            match self.pool.take() {
                Some(block) => {
                    self.waiting.pop_front();
                    if let Some(task) = task_mut(&mut self.tasks, tag) {
                        task.lend(block);
                    }
                    self.advance(tag);
                }
                // Whoever ends a transfer passes its block on. If nobody holds one, the host has no memory.
                None if self.pool.is_lent() => return,
                None => {
                    self.waiting.pop_front();
                    self.finish(tag, Err(io::ErrorKind::OutOfMemory.into()));
                }
            }
        }
    }

    /// Hands over the run that has been growing.
    fn close_run(&mut self) {
        let Some(Run { first, way, offset, iovecs }) = self.runs.close(&self.tasks) else { return };
        if iovecs.is_empty() {
            return self.advance(first);
        }
        let call = match way {
            Way::Read => Call::Read { iovecs, offset },
            Way::Write { stable } => Call::Write { iovecs, offset, stable },
        };
        let pushed = entry(&call).map(|entry| push(&mut self.ring, &entry.user_data(u64::from(first) | RUN)));
        match pushed {
            Some(Ok(())) => self.outstanding += 1,
            _ => self.end_run(first, 0),
        }
    }

    /// The members whose bytes are among the first `moved` are done; the others go on by themselves.
    fn end_run(&mut self, first: u16, moved: usize) {
        let (mut member, mut left) = (Some(first), moved as u64);
        while let Some(tag) = member {
            member = self.runs.leave(tag);
            let len = task_mut(&mut self.tasks, tag).and_then(|task| task.transfer()).map_or(0, |(_, span)| span.len);
            match left.checked_sub(len) {
                Some(rest) => {
                    left = rest;
                    self.finish(tag, Ok(()));
                }
                None => {
                    left = 0;
                    self.advance(tag);
                }
            }
        }
    }

    /// Makes the task's next call. One that io_uring has no operation for is made at once.
    fn advance(&mut self, tag: u16) {
        while let Some(task) = task_mut(&mut self.tasks, tag) {
            let call = task.call();
            let returned = match entry(&call) {
                Some(entry) => match push(&mut self.ring, &entry.user_data(u64::from(tag))) {
                    Ok(()) => {
                        self.outstanding += 1;
                        return;
                    }
                    Err(full) => Err(full),
                },
                None => calls::perform(&self.target.file, &call),
            };
            if let Some(result) = task.advance(returned) {
                return self.finish(tag, result);
            }
        }
    }

    fn finish(&mut self, tag: u16, result: io::Result<()>) {
        if let Some(block) = task_mut(&mut self.tasks, tag).and_then(Task::take_block) {
            self.pool.give(block);
        }
        self.done.push_back((tag, result));
    }

    /// Hands the kernel what was pushed, waiting for `want` completions.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        let submission = self.ring.submission();
        if want == 0 && submission.is_empty() && !submission.taskrun() {
            return Ok(());
        }
        drop(submission);
        loop {
            match self.ring.submit_and_wait(want) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Takes the completions that are there; false if there was none.
    fn collect(&mut self) -> bool {
        let mut collected = false;
        while let Some((Named { tag, is_run }, returned)) = next_completion(&mut self.ring) {
            collected = true;
            self.outstanding -= 1;
            if is_run {
                self.end_run(tag, returned.unwrap_or(0));
                continue;
            }
            match task_mut(&mut self.tasks, tag).and_then(|task| task.advance(returned)) {
                Some(result) => self.finish(tag, result),
                None => self.advance(tag),
            }
        }
        collected
    }
}

impl Engine for Uring {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        let slot = self.tasks.get_mut(usize::from(tag)).ok_or(io::ErrorKind::InvalidInput)?;
        if slot.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let task = slot.insert(Task::new(op, &self.target));
        self.in_flight += 1;
        if task.needs_block(&self.target) {
            self.waiting.push_back(tag);
        } else if !self.runs.continues(tag, task) {
            self.close_run();
            let is_transfer = task_mut(&mut self.tasks, tag).is_some_and(|task| self.runs.begin(tag, task));
            if !is_transfer {
                self.advance(tag);
            }
        }
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        self.close_run();
        loop {
            self.start_waiting();
            self.enter(0)?;
            // What was collected may have to go on, or have left its block to another.
            if !self.collect() {
                return Ok(());
            }
        }
    }

    fn reap(&mut self) -> Option<Done> {
        let (tag, result) = self.done.pop_front()?;
        let task = self.tasks.get_mut(usize::from(tag))?.take()?;
        self.in_flight -= 1;
        Some(Done { tag, memory: task.into_memory(), result })
    }

    fn wait(&mut self) -> io::Result<()> {
        self.kick()?;
        if self.done.is_empty() && self.outstanding > 0 {
            self.enter(1)?;
            self.kick()?;
        }
        Ok(())
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns the descriptor and lives as long as the borrow of `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.outstanding > 0 {
            if let Err(error) = self.enter(1) {
                tracing::error!(name: "disk.leak", %error, "io_uring does not give memory back; it stays mapped");
                mem::forget(mem::take(&mut self.tasks));
                return;
            }
            while next_completion(&mut self.ring).is_some() {
                self.outstanding -= 1;
            }
        }
        // The kernel takes a closed ring apart when it likes, and would keep the file open and locked until then.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// On Linux 5.19 and later completions wait for the lane's next system call instead of interrupting it.
fn new_ring(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_coop_taskrun().setup_taskrun_flag();
    builder.build(entries).or_else(|_older_kernel| IoUring::builder().dontfork().build(entries))
}

fn task_mut(tasks: &mut [Option<Task>], tag: u16) -> Option<&mut Task> {
    tasks.get_mut(usize::from(tag))?.as_mut()
}

/// The operation that makes `call`, if io_uring has one. One buffer, the common case, needs no list of buffers to be
/// read and checked by the kernel.
fn entry(call: &Call<'_>) -> Option<squeue::Entry> {
    Some(match *call {
        Call::Read { iovecs: [one], offset } => {
            opcode::Read::new(FILE, one.iov_base.cast(), len(one)).offset(offset).build()
        }
        Call::Write { iovecs: [one], offset, stable } => opcode::Write::new(FILE, one.iov_base.cast(), len(one))
            .offset(offset)
            .rw_flags(calls::write_flags(stable))
            .build(),
        Call::Read { iovecs, offset } => {
            opcode::Readv::new(FILE, iovecs.as_ptr(), count(iovecs)).offset(offset).build()
        }
        Call::Write { iovecs, offset, stable } => opcode::Writev::new(FILE, iovecs.as_ptr(), count(iovecs))
            .offset(offset)
            .rw_flags(calls::write_flags(stable))
            .build(),
        Call::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, span } => opcode::Fallocate::new(FILE, span.len).offset(span.offset).mode(mode).build(),
        Call::DiscardBlocks { .. } => return None,
    })
}

/// A longer buffer than fits is a short transfer, and goes on from there.
fn len(buffer: &libc::iovec) -> u32 {
    u32::try_from(buffer.iov_len).unwrap_or(u32::MAX)
}

fn count(iovecs: &[libc::iovec]) -> u32 {
    u32::try_from(iovecs.len()).unwrap_or(u32::MAX)
}

/// There is room: the ring has an entry for each tag, and a task makes one call at a time.
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    let mut submission = ring.submission();
    // SAFETY: the entry names the registered file, and memory that its task owns until the call's completion has been
    // taken; an engine that is dropped waits for that, or leaks the task.
    unsafe { submission.push(entry) }.map_err(|_full| io::ErrorKind::WouldBlock.into())
}

/// Set in what a call of a run is named by.
const RUN: u64 = 1 << 16;

/// What a completion is of.
struct Named {
    tag: u16,
    /// Of all of the run that the tag is the first of.
    is_run: bool,
}

fn next_completion(ring: &mut IoUring) -> Option<(Named, io::Result<usize>)> {
    let completion = ring.completion().next()?;
    let name = completion.user_data();
    let named = Named { tag: u16::try_from(name & !RUN).unwrap_or(u16::MAX), is_run: name & RUN != 0 };
    let returned = completion.result();
    Some((named, usize::try_from(returned).map_err(|_negative| io::Error::from_raw_os_error(-returned))))
}

#[cfg(test)]
impl Uring {
    /// The same, whose turn nobody but the kernel has.
    pub(crate) fn without_turn(mut self) -> Self {
        self.target.turn = None;
        self
    }
}
