//! Neighbours on the disk that were submitted one after the other: one call of the kernel serves a run of them.
//!
//! A run that the kernel does not do as a whole says nothing of its members; those are then done one by one, so that each
//! ends as it would have by itself.

use super::task::{IOV_MAX, Task, Way};

/// Bytes of a run. Beyond it a call's own cost is lost in that of the bytes.
const LONGEST: u64 = 1 << 20;

/// Who belongs to which run, by tag.
pub(super) struct Runs {
    /// The one that may still grow.
    open: Option<Open>,
    /// By tag: who follows in its run.
    next: Box<[Option<u16>]>,
    /// By the first tag: where the memory of all is. Never changes while the kernel works on the run.
    lists: Box<[Vec<libc::iovec>]>,
}

// SAFETY: the lists describe memory of the tasks that the runs are of, which go along with them.
#[expect(unsafe_code, reason = "the addresses in a list of iovecs are not Send by themselves")]
unsafe impl Send for Runs {}

/// A run to which more may come.
struct Open {
    first: u16,
    last: u16,
    way: Way,
    /// On the disk, in bytes.
    start: u64,
    end: u64,
}

/// A run that is to be done.
pub(super) struct Run<'a> {
    /// Its first tag, which stands for it.
    pub(super) first: u16,
    pub(super) way: Way,
    pub(super) offset: u64,
    /// Empty if it has one member only.
    pub(super) iovecs: &'a [libc::iovec],
}

impl Runs {
    /// Of tags below `depth`.
    pub(super) fn new(depth: usize) -> Self {
        Self { open: None, next: vec![None; depth].into(), lists: (0..depth).map(|_| Vec::new()).collect() }
    }

    /// Adds a transfer to the open run, if it continues it. If not, that one has to be [closed](Self::close) before this
    /// transfer [begins](Self::begin) another.
    pub(super) fn continues(&mut self, tag: u16, task: &Task) -> bool {
        let (Some(open), Some((way, span))) = (&mut self.open, task.transfer()) else { return false };
        let fits = way == open.way && span.offset == open.end && open.end - open.start + span.len <= LONGEST;
        if !fits {
            return false;
        }
        if let Some(next) = self.next.get_mut(usize::from(open.last)) {
            *next = Some(tag);
        }
        (open.last, open.end) = (tag, open.end + span.len);
        true
    }

    /// Opens a run of one; false if the task is no transfer.
    pub(super) fn begin(&mut self, tag: u16, task: &Task) -> bool {
        let Some((way, span)) = task.transfer() else { return false };
        self.open = Some(Open { first: tag, last: tag, way, start: span.offset, end: span.offset + span.len });
        true
    }

    /// Takes the open run, to be done.
    pub(super) fn close(&mut self, tasks: &[Option<Task>]) -> Option<Run<'_>> {
        let Open { first, last, way, start, .. } = self.open.take()?;
        let list = self.lists.get_mut(usize::from(first))?;
        list.clear();
        if first != last {
            let mut member = Some(first);
            while let Some(tag) = member {
                tasks.get(usize::from(tag))?.as_ref()?.list(list);
                member = *self.next.get(usize::from(tag))?;
            }
        }
        // More pieces than a call takes make it end short.
        Some(Run { first, way, offset: start, iovecs: list.get(..IOV_MAX).unwrap_or(list) })
    }

    /// Takes `tag` out of its run, and gives who follows there.
    pub(super) fn leave(&mut self, tag: u16) -> Option<u16> {
        self.next.get_mut(usize::from(tag))?.take()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use guest_memory::Buffers;

    use super::*;
    use crate::engine::{Op, Span, Target, Transfer};

    fn task(offset: u64, len: u64, is_write: bool) -> Task {
        let transfer = Transfer { memory: Buffers::new(), at: 0, span: Span { offset, len } };
        let op = if is_write { Op::Write { transfer, stable: false } } else { Op::Read(transfer) };
        let file = Arc::new(File::open("/dev/null").unwrap());
        Task::new(op, &Target { file, is_block_device: false, direct_alignment: None, turn: None })
    }

    /// Submits these tasks; returns the tags of each run.
    fn runs_of(tasks: Vec<Task>) -> Vec<Vec<u16>> {
        let mut runs = Runs::new(tasks.len());
        let tasks: Vec<_> = tasks.into_iter().map(Some).collect();
        let mut firsts = Vec::new();
        for (tag, task) in (0..).zip(&tasks) {
            let task = task.as_ref().unwrap();
            if !runs.continues(tag, task) {
                firsts.extend(runs.close(&tasks).map(|run| run.first));
                assert!(runs.begin(tag, task));
            }
        }
        firsts.extend(runs.close(&tasks).map(|run| run.first));
        let mut members = |first| {
            let mut tags = vec![first];
            while let Some(tag) = runs.leave(*tags.last().unwrap()) {
                tags.push(tag);
            }
            tags
        };
        firsts.into_iter().map(&mut members).collect()
    }

    #[test]
    fn neighbours_that_go_the_same_way_are_one_run() {
        let tasks = vec![task(0, 4096, false), task(4096, 512, false), task(4608, 4096, false), task(0, 512, false)];
        assert_eq!(runs_of(tasks), [vec![0, 1, 2], vec![3]]);
        let tasks = vec![task(0, 512, false), task(512, 512, true), task(1024, 512, true), task(512, 512, true)];
        assert_eq!(runs_of(tasks), [vec![0], vec![1, 2], vec![3]]);
    }

    #[test]
    fn a_run_ends_where_it_gets_long() {
        let half = LONGEST / 2;
        let tasks = vec![task(0, half, true), task(half, half, true), task(2 * half, 512, true)];
        assert_eq!(runs_of(tasks), [vec![0, 1], vec![2]]);
    }
}
