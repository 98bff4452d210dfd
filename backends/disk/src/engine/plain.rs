//! One system call after the other, on the lane's own time. For hosts that refuse io_uring, and to compare with.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use super::bounce::Pool;
use super::task::Task;
use super::{Done, Engine, Op, Target, calls};

/// An engine that is done with an operation when it has been submitted.
pub struct Plain {
    target: Target,
    depth: u16,
    pool: Pool,
    done: VecDeque<Done>,
}

impl Plain {
    /// An engine for `target`, for tags below `depth`.
    pub fn new(target: Target, depth: u16) -> Self {
        // One operation at a time needs one block.
        Self { target, depth, pool: Pool::new(1), done: VecDeque::with_capacity(usize::from(depth)) }
    }

    fn run(&mut self, task: &mut Task) -> io::Result<()> {
        if task.needs_block(&self.target) {
            task.lend(self.pool.take().ok_or(io::ErrorKind::OutOfMemory)?);
        }
        let result = loop {
            let returned = calls::perform(&self.target.file, &task.call());
            if let Some(result) = task.advance(returned) {
                break result;
            }
        };
        if let Some(block) = task.take_block() {
            self.pool.give(block);
        }
        result
    }
}

impl Engine for Plain {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        if tag >= self.depth {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut task = Task::new(op, &self.target);
        let result = self.run(&mut task);
        self.done.push_back(Done { tag, memory: task.into_memory(), result });
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
