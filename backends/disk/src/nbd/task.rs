//! What an operation takes of a server: a series of requests, one at a time, as a state machine that sends none itself.
//!
//! A request carries no more data than the server takes at once, what the server cannot do is done in another way, and
//! what was under way when a connection ended starts anew on the next: from its first byte, because a server that
//! crashed may have forgotten what it had answered of it.

use std::io;

use guest_memory::Buffers;

use crate::engine::{Done, Op, Span};

use super::NbdError;
use super::coverage::Coverage;
use super::export::Export;
use super::wire::command;

/// A request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) payload: Payload,
}

/// What goes behind a request's header, as many bytes as the request's length says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    None,
    /// The operation's memory, from this byte on.
    Memory {
        at: usize,
    },
    Zeroes,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Send(Outgoing),
    /// Nothing: the server has no need of it, or no way to do it.
    Nothing,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) cookie: u64,
    pub(super) kind: u16,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// For a read: what of its data has come.
    pub(super) coverage: Coverage,
    /// What the server says went wrong, so far.
    pub(super) errors: u32,
    pub(super) error: Option<io::Error>,
}

impl Sent {
    /// Where the request ends.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Work,
    /// What was written becomes durable.
    Sync,
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Task {
    op: Op,
    stage: Stage,
    /// Bytes of it that the server has answered.
    done: u64,
    pub(super) sent: Option<Sent>,
    /// For a flush: how many writes the server had acknowledged when it was sent.
    pub(super) acknowledged: u64,
}

impl Task {
    pub(super) fn new(op: Op) -> Self {
        Self { op, stage: Stage::Work, done: 0, sent: None, acknowledged: 0 }
    }

    /// Whether it is the guest's wish for durability, and nothing else.
    pub(super) fn is_flush(&self) -> bool {
        matches!(self.op, Op::Flush)
    }

    /// Whether it leaves something in the server's cache that the guest may want flushed.
    pub(super) fn leaves_unflushed(&self) -> bool {
        matches!(self.op, Op::Write { stable: false, .. } | Op::WriteZeroes { stable: false, .. })
    }

    /// Whether the server could take it at all: whole blocks within the export.
    pub(super) fn fits(&self, export: &Export) -> bool {
        let block_size = u64::from(export.block_size);
        self.span().is_none_or(|Span { offset, len }| {
            let end = offset.checked_add(len);
            offset.is_multiple_of(block_size)
                && len.is_multiple_of(block_size)
                && end.is_some_and(|end| end <= export.size)
        })
    }

    /// What to send now.
    pub(super) fn next(&self, export: &Export) -> Next {
        let flush = Outgoing { kind: command::FLUSH, flags: 0, offset: 0, len: 0, payload: Payload::None };
        let Some(span) = self.span().filter(|_| self.stage == Stage::Work) else {
            return if export.can_flush() { Next::Send(flush) } else { Next::Nothing };
        };
        let offset = span.offset + self.done;
        let left = u32::try_from(span.len - self.done).unwrap_or(u32::MAX);
        let at_once = left.min(export.max_payload);
        let fua = if self.is_stable() && export.can_fua() { command::FUA } else { 0 };
        let at = self.position();
        let (kind, flags, len, payload) = match &self.op {
            Op::Read(_) => (command::READ, 0, at_once, Payload::None),
            Op::Write { .. } => (command::WRITE, fua, at_once, Payload::Memory { at }),
            Op::Discard(_) if export.can_trim() => (command::TRIM, 0, left, Payload::None),
            Op::WriteZeroes { may_unmap, .. } if export.can_write_zeroes() => {
                let no_hole = if *may_unmap { 0 } else { command::NO_HOLE };
                (command::WRITE_ZEROES, fua | no_hole, left, Payload::None)
            }
            Op::WriteZeroes { .. } => (command::WRITE, fua, at_once, Payload::Zeroes),
            Op::Discard(_) | Op::Flush => return Next::Nothing,
        };
        Next::Send(Outgoing { kind, flags, offset, len, payload })
    }

    /// Takes the answer to the request that was sent. `None`: there is more to do.
    pub(super) fn advance(&mut self, export: &Export) -> Option<io::Result<()>> {
        let sent = self.sent.take()?;
        if let Some(error) = sent.error {
            return Some(Err(error));
        }
        self.done += sent.len;
        if self.stage == Stage::Work && self.span().is_some_and(|span| self.done < span.len) {
            return None;
        }
        let is_durable = export.can_fua() || !export.can_flush() || self.stage == Stage::Sync;
        if self.is_stable() && !is_durable {
            self.stage = Stage::Sync;
            return None;
        }
        Some(Ok(()))
    }

    /// The connection is gone, and what was answered on it may be as well.
    pub(super) fn restart(&mut self) {
        (self.stage, self.done, self.sent) = (Stage::Work, 0, None);
    }

    pub(super) fn into_done(self, tag: u16, result: io::Result<()>) -> Done {
        let memory = match self.op {
            Op::Read(transfer) | Op::Write { transfer, .. } => transfer.memory,
            Op::Flush | Op::Discard(_) | Op::WriteZeroes { .. } => Buffers::new(),
        };
        Done { tag, memory, result }
    }

    /// A transfer's memory, and which of its bytes belongs to the start of the span.
    pub(super) fn memory(&self) -> Option<(&Buffers, usize)> {
        match &self.op {
            Op::Read(transfer) | Op::Write { transfer, .. } => Some((&transfer.memory, transfer.at)),
            Op::Flush | Op::Discard(_) | Op::WriteZeroes { .. } => None,
        }
    }

    /// Where in the memory the byte of the disk at `offset` belongs.
    pub(super) fn place_of(&self, offset: u64) -> Option<usize> {
        let (_, at) = self.memory()?;
        let from_start = usize::try_from(offset.checked_sub(self.span()?.offset)?).ok()?;
        at.checked_add(from_start)
    }

    fn position(&self) -> usize {
        self.span().and_then(|span| self.place_of(span.offset + self.done)).unwrap_or_default()
    }

    fn span(&self) -> Option<Span> {
        match &self.op {
            Op::Read(transfer) | Op::Write { transfer, .. } => Some(transfer.span),
            Op::Discard(span) | Op::WriteZeroes { span, .. } => Some(*span),
            Op::Flush => None,
        }
    }

    fn is_stable(&self) -> bool {
        matches!(self.op, Op::Write { stable: true, .. } | Op::WriteZeroes { stable: true, .. })
    }
}

/// The operations of an engine, by tag. A request's cookie has its tag in the lowest 16 bits, above them a number that
/// no other request has had.
pub(super) struct Tasks(Box<[Option<Task>]>);

impl Tasks {
    pub(super) fn new(depth: u16) -> Self {
        Self((0..depth).map(|_| None).collect())
    }

    /// Adds an operation.
    ///
    /// # Errors
    /// The tag is in use, or there is none of this number.
    pub(super) fn insert(&mut self, tag: u16, op: Op) -> io::Result<&mut Task> {
        let place = self.0.get_mut(usize::from(tag)).ok_or(io::ErrorKind::InvalidInput)?;
        if place.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(place.insert(Task::new(op)))
    }

    pub(super) fn get(&self, tag: u16) -> Option<&Task> {
        self.0.get(usize::from(tag))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, tag: u16) -> Option<&mut Task> {
        self.0.get_mut(usize::from(tag))?.as_mut()
    }

    pub(super) fn remove(&mut self, tag: u16) -> Option<Task> {
        self.0.get_mut(usize::from(tag))?.take()
    }

    /// The request that a server's answer with this cookie is for.
    pub(super) fn answered(&mut self, cookie: u64) -> Result<(u16, &mut Task), NbdError> {
        let tag = u16::try_from(cookie & u64::from(u16::MAX)).unwrap_or_default();
        let task = self.get_mut(tag).filter(|task| task.sent.as_ref().is_some_and(|sent| sent.cookie == cookie));
        task.map(|task| (tag, task))
            .ok_or(NbdError::Lied("it answered a request that it was not sent, or answered before"))
    }

    /// Whether the server owes an answer.
    pub(super) fn any_sent(&self) -> bool {
        self.0.iter().flatten().any(|task| task.sent.is_some())
    }

    /// Restarts what was sent. Returns whose it was.
    pub(super) fn restart_sent(&mut self) -> Vec<u16> {
        let sent = (0u16..).zip(&mut *self.0).filter_map(|(tag, task)| Some((tag, task.as_mut()?)));
        // What is between two requests of its series has to start anew as well.
        let sent = sent.filter(|(_, task)| task.sent.is_some() || task.done > 0 || task.stage == Stage::Sync);
        sent.map(|(tag, task)| {
            task.restart();
            tag
        })
        .collect()
    }
}
