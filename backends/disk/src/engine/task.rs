//! What an operation takes: the series of system calls that does it, as a state machine that makes none itself.
//!
//! Short transfers go on where they stopped, interrupted calls are made again, and what a file system cannot do is done
//! in another way. Every call that succeeds moves the task forward, so a task ends.
#![expect(unsafe_code, reason = "the addresses in a list of iovecs are not Send by themselves")]

use std::io;

use guest_memory::{Buffers, IoVecs};

use super::bounce::{Block, ZERO_BLOCK_SIZE, ZEROES};
use super::{Op, Span, Target, Transfer};

/// The kernel's limit on a list of iovecs (UIO_MAXIOV).
pub(super) const IOV_MAX: usize = 1024;

/// Bytes of zeroes written with one call.
const ZEROES_A_CALL: u64 = 1 << 20;

/// A system call to make.
#[derive(Debug)]
pub(super) enum Call<'a> {
    Read {
        iovecs: &'a [libc::iovec],
        offset: u64,
    },
    Write {
        iovecs: &'a [libc::iovec],
        offset: u64,
        stable: bool,
    },
    Sync,
    /// `fallocate(2)` with this mode.
    Allocate {
        mode: i32,
        span: Span,
    },
    /// `ioctl(BLKDISCARD)`: unlike `fallocate` it also reaches thin volumes and disks that do not promise zeroes.
    DiscardBlocks {
        span: Span,
    },
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write { stable: bool },
}

/// Which call comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Transfer,
    Punch,
    ZeroRange,
    DiscardBlocks,
    FillZeroes,
    Sync,
}

/// An operation under way.
pub(super) struct Task {
    op: Op,
    stage: Stage,
    /// Bytes moved.
    done: u64,
    /// What the call under way works on; the list itself must stay in place until the kernel has read it.
    iovecs: IoVecs,
    block: Option<Block>,
}

// SAFETY: `iovecs` points into the memory of `op`, into `block` or into `ZEROES`, which go along or stay for ever, and
// all of which may be used from any thread.
unsafe impl Send for Task {}

impl Task {
    pub(super) fn new(op: Op, target: &Target) -> Self {
        let stage = match &op {
            Op::Read(_) | Op::Write { .. } => Stage::Transfer,
            Op::Flush => Stage::Sync,
            Op::Discard(_) if target.is_block_device => Stage::DiscardBlocks,
            Op::Discard(_) | Op::WriteZeroes { may_unmap: true, .. } => Stage::Punch,
            Op::WriteZeroes { may_unmap: false, .. } => Stage::ZeroRange,
        };
        Self { op, stage, done: 0, iovecs: IoVecs::new(), block: None }
    }

    /// Whether it must be lent a block before its first call.
    pub(super) fn needs_block(&self, target: &Target) -> bool {
        let (Some(alignment), Op::Read(transfer) | Op::Write { transfer, .. }) = (target.direct_alignment, &self.op)
        else {
            return false;
        };
        !transfer.memory.direct_io_capable() || !is_aligned(remaining(transfer, 0, &mut IoVecs::new()), alignment)
    }

    /// A transfer's way and place on the disk.
    pub(super) fn transfer(&self) -> Option<(Way, Span)> {
        match &self.op {
            Op::Read(transfer) => Some((Way::Read, transfer.span)),
            Op::Write { transfer, stable } => Some((Way::Write { stable: *stable }, transfer.span)),
            Op::Flush | Op::Discard(_) | Op::WriteZeroes { .. } => None,
        }
    }

    /// Adds where a transfer's memory is.
    pub(super) fn list(&self, iovecs: &mut Vec<libc::iovec>) {
        if let Op::Read(transfer) | Op::Write { transfer, .. } = &self.op {
            iovecs.extend_from_slice(remaining(transfer, 0, &mut IoVecs::new()));
        }
    }

    pub(super) fn lend(&mut self, block: Block) {
        self.block = Some(block);
    }

    pub(super) fn take_block(&mut self) -> Option<Block> {
        self.block.take()
    }

    /// The memory of a transfer.
    pub(super) fn into_memory(self) -> Buffers {
        match self.op {
            Op::Read(transfer) | Op::Write { transfer, .. } => transfer.memory,
            Op::Flush | Op::Discard(_) | Op::WriteZeroes { .. } => Buffers::new(),
        }
    }

    /// The call to make now.
    pub(super) fn call(&mut self) -> Call<'_> {
        let Self { op, stage, done, iovecs, block } = self;
        match (&*op, *stage) {
            (Op::Read(transfer), _) => {
                let iovecs = match block {
                    Some(block) => one(iovecs, block.iovec(left(transfer.span, *done))),
                    None => remaining(transfer, *done, iovecs),
                };
                Call::Read { iovecs, offset: transfer.span.offset + *done }
            }
            (Op::Write { transfer, stable }, _) => {
                let iovecs = match block {
                    Some(block) => {
                        let at = transfer.at + to_usize(*done);
                        one(iovecs, block.load(&transfer.memory, at, left(transfer.span, *done)))
                    }
                    None => remaining(transfer, *done, iovecs),
                };
                Call::Write { iovecs, offset: transfer.span.offset + *done, stable: *stable }
            }
            (Op::WriteZeroes { span, stable, .. }, Stage::FillZeroes) => {
                *iovecs = zeroes((span.len - *done).min(ZEROES_A_CALL));
                Call::Write { iovecs, offset: span.offset + *done, stable: *stable }
            }
            (Op::WriteZeroes { span, .. }, Stage::ZeroRange) => {
                Call::Allocate { mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, span: *span }
            }
            (Op::Discard(span), Stage::DiscardBlocks) => Call::DiscardBlocks { span: *span },
            (Op::Flush, _) | (_, Stage::Sync) => Call::Sync,
            (Op::Discard(span) | Op::WriteZeroes { span, .. }, _) => {
                Call::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, span: *span }
            }
        }
    }

    /// Takes what the call returned. `None`: there is another call to make.
    pub(super) fn advance(&mut self, returned: io::Result<usize>) -> Option<io::Result<()>> {
        match (returned, self.stage) {
            (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => None,
            (Err(error), Stage::Punch | Stage::ZeroRange | Stage::DiscardBlocks) if is_unsupported(&error) => {
                self.do_without()
            }
            (Err(error), _) => Some(Err(error)),
            (Ok(moved), Stage::Transfer | Stage::FillZeroes) => self.moved(moved),
            (Ok(_), Stage::Punch | Stage::ZeroRange | Stage::DiscardBlocks) => self.settle(),
            (Ok(_), Stage::Sync) => Some(Ok(())),
        }
    }

    fn moved(&mut self, moved: usize) -> Option<io::Result<()>> {
        // Reading ends short where the file was truncated; writing, where it may not grow.
        if moved == 0 {
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        if let (Op::Read(transfer), Some(block)) = (&self.op, &mut self.block) {
            block.store(&transfer.memory, transfer.at + to_usize(self.done), moved);
        }
        self.done += moved as u64;
        let whole = match &self.op {
            Op::Read(transfer) | Op::Write { transfer, .. } => transfer.span.len,
            Op::WriteZeroes { span, .. } | Op::Discard(span) => span.len,
            Op::Flush => 0,
        };
        if self.done < whole { None } else { self.settle() }
    }

    /// The storage lacks the call: a discard is a hint, zeroes are a promise.
    fn do_without(&mut self) -> Option<io::Result<()>> {
        if let Op::Discard(_) = self.op {
            return Some(Ok(()));
        }
        self.stage = Stage::FillZeroes;
        None
    }

    /// All is in place; `fallocate` has no way to ask for durability at once, as writes have.
    fn settle(&mut self) -> Option<io::Result<()>> {
        match (&self.op, self.stage) {
            (Op::WriteZeroes { stable: true, .. }, Stage::Punch | Stage::ZeroRange) => {
                self.stage = Stage::Sync;
                None
            }
            _ => Some(Ok(())),
        }
    }
}

/// Whether the file, or this part of a block device, cannot do the call at all.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY))
}

fn is_aligned(iovecs: &[libc::iovec], alignment: usize) -> bool {
    let bits = iovecs.iter().fold(0, |bits, iovec| bits | iovec.iov_base.addr() | iovec.iov_len);
    bits & (alignment - 1) == 0
}

/// What is left of a transfer, as far as one call takes it: as it stands in its memory, or else listed in `list`.
fn remaining<'a>(transfer: &'a Transfer, done: u64, list: &'a mut IoVecs) -> &'a [libc::iovec] {
    let (at, len) = (transfer.at + to_usize(done), left(transfer.span, done));
    match transfer.memory.whole(at, len) {
        Some(buffers) => buffers.get(..IOV_MAX).unwrap_or(buffers),
        None => {
            *list = transfer.memory.clip(at, len);
            list.truncate(IOV_MAX);
            list
        }
    }
}

fn one(list: &mut IoVecs, iovec: libc::iovec) -> &[libc::iovec] {
    list.clear();
    list.push(iovec);
    list
}

fn left(span: Span, done: u64) -> usize {
    to_usize(span.len - done)
}

/// Lengths of what is in memory fit.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn zeroes(len: u64) -> IoVecs {
    let mut left = to_usize(len);
    std::iter::from_fn(|| {
        let iov_len = left.min(ZERO_BLOCK_SIZE);
        left -= iov_len;
        // Only ever written from.
        (iov_len > 0).then_some(libc::iovec { iov_base: (&raw const ZEROES.0).cast_mut().cast(), iov_len })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;

    const SPAN: Span = Span { offset: 4096, len: 3 << 20 };

    fn target(is_block_device: bool) -> Target {
        let file = Arc::new(File::open("/dev/null").unwrap());
        Target { file, is_block_device, direct_alignment: None, turn: None }
    }

    fn zeroing(may_unmap: bool, stable: bool) -> Task {
        Task::new(Op::WriteZeroes { span: SPAN, may_unmap, stable }, &target(false))
    }

    fn errno(code: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(code))
    }

    /// What the next call is, in a word or two, and how much it moves.
    fn next(task: &mut Task) -> (&'static str, u64) {
        let len = |iovecs: &[libc::iovec]| iovecs.iter().map(|iovec| iovec.iov_len as u64).sum();
        match task.call() {
            Call::Read { iovecs, .. } => ("read", len(iovecs)),
            Call::Write { iovecs, stable: false, .. } => ("write", len(iovecs)),
            Call::Write { iovecs, stable: true, .. } => ("stable write", len(iovecs)),
            Call::Sync => ("sync", 0),
            Call::Allocate { mode, span } if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 => ("punch", span.len),
            Call::Allocate { span, .. } => ("zero range", span.len),
            Call::DiscardBlocks { span } => ("discard blocks", span.len),
        }
    }

    #[test]
    fn zeroes_are_written_where_the_file_system_has_no_call_for_them() {
        let mut task = zeroing(false, false);
        assert_eq!(next(&mut task), ("zero range", SPAN.len));
        assert!(task.advance(errno(libc::EOPNOTSUPP)).is_none());
        for done in 0..3 {
            assert_eq!(next(&mut task), ("write", 1 << 20), "after {done} MiB");
            let end = task.advance(Ok(1 << 20));
            assert_eq!(end.is_some(), done == 2);
        }
    }

    #[test]
    fn stable_zeroes_end_in_a_sync_or_are_written_stably() {
        let mut task = zeroing(true, true);
        assert_eq!(next(&mut task), ("punch", SPAN.len));
        assert!(task.advance(Ok(0)).is_none());
        assert_eq!(next(&mut task), ("sync", 0));
        assert!(task.advance(Ok(0)).unwrap().is_ok());

        let mut task = zeroing(true, true);
        assert!(task.advance(errno(libc::EOPNOTSUPP)).is_none());
        assert_eq!(next(&mut task).0, "stable write");
    }

    #[test]
    fn a_sync_that_fails_fails_the_stable_zeroes() {
        let mut task = zeroing(false, true);
        assert!(task.advance(Ok(0)).is_none());
        assert!(task.advance(errno(libc::EIO)).unwrap().is_err());
    }

    #[test]
    fn a_discard_that_the_storage_cannot_do_is_done() {
        for (is_block_device, call) in [(false, "punch"), (true, "discard blocks")] {
            let mut task = Task::new(Op::Discard(SPAN), &target(is_block_device));
            assert_eq!(next(&mut task), (call, SPAN.len));
            assert!(task.advance(errno(libc::EOPNOTSUPP)).unwrap().is_ok());
        }
    }

    #[test]
    fn a_discard_that_fails_for_another_reason_fails() {
        let mut task = Task::new(Op::Discard(SPAN), &target(false));
        assert!(task.advance(errno(libc::EIO)).unwrap().is_err());
    }

    /// Operations that move bytes, as they stand before the first call that does.
    fn moving() -> [(&'static str, Task); 4] {
        let transfer = || Transfer { memory: Buffers::new(), at: 0, span: SPAN };
        let mut filling = zeroing(false, false);
        assert!(filling.advance(errno(libc::EOPNOTSUPP)).is_none());
        [
            ("read", Task::new(Op::Read(transfer()), &target(false))),
            ("write", Task::new(Op::Write { transfer: transfer(), stable: false }, &target(false))),
            ("stable write", Task::new(Op::Write { transfer: transfer(), stable: true }, &target(true))),
            ("zeroes", filling),
        ]
    }

    fn offset(task: &mut Task) -> u64 {
        match task.call() {
            Call::Read { offset, .. } | Call::Write { offset, .. } => offset,
            _ => panic!("a call that moves nothing"),
        }
    }

    #[test]
    fn e07_short_calls_go_on_and_interrupted_ones_are_made_again_to_the_last_byte() {
        let steps = [1 << 20, 4096, 1000, to_usize(SPAN.len) - 1, to_usize(SPAN.len)];
        testkit::cases::each(
            steps.into_iter().flat_map(|step| [true, false].map(|is_interrupted| (step, is_interrupted))),
            |(step, is_interrupted)| {
                for (what, mut task) in moving() {
                    let mut done = 0;
                    loop {
                        assert_eq!(offset(&mut task), SPAN.offset + done, "{what}");
                        if is_interrupted {
                            assert!(task.advance(errno(libc::EINTR)).is_none(), "{what}");
                            assert_eq!(offset(&mut task), SPAN.offset + done, "{what}");
                        }
                        let moved = step.min(to_usize(SPAN.len - done));
                        done += moved as u64;
                        let end = task.advance(Ok(moved));
                        assert_eq!(end.is_some(), done == SPAN.len, "{what}, {done} done");
                        if let Some(end) = end {
                            break end.unwrap();
                        }
                    }
                }
            },
        );
    }

    #[test]
    fn e07_what_moves_nothing_or_fails_ends_there_however_much_was_done() {
        let errors =
            [libc::EAGAIN, libc::EIO, libc::ENOSPC, libc::EFBIG, libc::EDQUOT, libc::ESTALE, libc::EROFS, libc::EINVAL];
        let ends = errors.map(Some).into_iter().chain([None]);
        let inputs = ends.flat_map(|end| [0, 1, 4096, to_usize(SPAN.len) - 1].map(|before| (end, before)));
        testkit::cases::each(inputs, |(end, before)| {
            for (what, mut task) in moving() {
                if before > 0 {
                    assert!(task.advance(Ok(before)).is_none(), "{what}");
                }
                let error = task.advance(end.map_or(Ok(0), errno)).expect("it has ended").unwrap_err();
                assert_eq!(error.raw_os_error(), end, "{what}");
            }
        });
    }

    #[test]
    fn an_interrupted_call_is_made_again_and_a_short_one_goes_on() {
        let mut task = zeroing(false, false);
        task.advance(errno(libc::EOPNOTSUPP));
        assert!(task.advance(errno(libc::EINTR)).is_none());
        assert!(task.advance(Ok(1000)).is_none());
        let Call::Write { offset, .. } = task.call() else { panic!("not a write") };
        assert_eq!(offset, SPAN.offset + 1000);
        assert!(task.advance(Ok(0)).unwrap().is_err(), "nothing moved, so nothing will");
    }
}
