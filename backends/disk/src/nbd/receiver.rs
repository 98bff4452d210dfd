//! Answers on their way in: parsed from a staging buffer, large data straight into the guest's memory.
//!
//! Nothing that a server says is believed before it is held against the request that it claims to answer. What does not
//! fit ends the connection; there is no way to find the start of the next answer then.

use std::io;
use std::os::fd::BorrowedFd;

use guest_memory::{Part, read_vectored};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::NbdError;
use super::export::Export;
use super::sender::fitting;
use super::task::{Sent, Task, Tasks};
use super::wire::{
    ChunkError, ChunkHeader, Hole, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, chunk, command,
};

/// Bytes read at a time where headers are expected: a few small answers, so that each costs less than a call.
const STAGING: usize = 16 << 10;

/// From how many bytes on data are worth a call of their own, instead of a copy.
const DIRECT: usize = 8 << 10;

/// How often the socket is read in a turn: a server must not keep a lane to itself.
const MOST_CALLS: u32 = 256;

/// The most bytes of a chunk that tells of an error: the longest string of the protocol, and what goes before it.
const LONGEST_ERROR: u32 = 4096 + 16;

/// The most such chunks of one reply.
const MOST_ERRORS: u32 = 16;

/// Linux's number of NBD_ESHUTDOWN, as of the others.
const SHUTDOWN: u32 = libc::ESHUTDOWN.unsigned_abs();

/// The numbers that the protocol gives a meaning; all are Linux's own.
const KNOWN_ERRORS: [i32; 7] =
    [libc::EPERM, libc::EIO, libc::ENOMEM, libc::EINVAL, libc::ENOSPC, libc::EOVERFLOW, libc::ENOTSUP];

/// What is to come next.
#[derive(Clone, Copy, Debug)]
enum State {
    /// The header of an answer, or of a chunk of one.
    Header,
    /// What tells of a hole or of an error.
    Body(ChunkHeader),
    /// Bytes of a read, and where the next of them belongs.
    Data(Stretch, usize),
    /// Bytes of no interest.
    Skip(Stretch),
}

/// Bytes to come.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    tag: u16,
    left: usize,
    /// With them the answer ends.
    is_last: bool,
}

impl Stretch {
    fn after(self, moved: usize) -> Self {
        Self { left: self.left.saturating_sub(moved), ..self }
    }
}

/// What a look at the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The request of this tag is answered.
    Answer(u16),
    /// There is no more for now.
    Nothing,
    /// There may be more, and others are to have their turn.
    Enough,
}

/// The incoming half of a connection.
pub(super) struct Receiver {
    staging: Box<[u8]>,
    /// What of it is there and not used.
    start: usize,
    end: usize,
    state: State,
    /// Calls that brought something since the last [rest](Receiver::rest).
    calls: u32,
}

impl Receiver {
    /// Nothing has come yet.
    ///
    /// # Errors
    /// The host has no memory.
    pub(super) fn new() -> io::Result<Self> {
        let staging = <[u8]>::new_box_zeroed_with_elems(STAGING).map_err(|_none| io::ErrorKind::OutOfMemory)?;
        Ok(Self { staging, start: 0, end: 0, state: State::Header, calls: 0 })
    }

    /// Whether nothing of an answer has come that has no end yet.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Header) && self.start == self.end
    }

    /// Begins a new turn. True if the one that ends brought anything.
    pub(super) fn rest(&mut self) -> bool {
        std::mem::take(&mut self.calls) > 0
    }

    /// Reads until a request is answered, or the socket has no more. `sending` is a request of which not everything has
    /// been sent.
    ///
    /// # Errors
    /// The connection is gone, or the server breaks the protocol.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        tasks: &mut Tasks,
        export: &Export,
        sending: Option<u16>,
    ) -> Result<Received, NbdError> {
        while self.calls < MOST_CALLS {
            let step = match self.state {
                State::Header => self.header(tasks, export, sending)?,
                State::Body(header) => self.body(header, tasks)?,
                State::Data(data, at) => self.data(socket, tasks, data, at)?,
                State::Skip(skipped) => self.skip(tasks, skipped)?,
            };
            match step {
                Step::Ended(tag) => return Ok(Received::Answer(tag)),
                Step::On => {}
                Step::Starved if self.fill(socket)? => {}
                Step::Starved | Step::Dry => return Ok(Received::Nothing),
            }
        }
        Ok(Received::Enough)
    }

    fn header(&mut self, tasks: &mut Tasks, export: &Export, sending: Option<u16>) -> Result<Step, NbdError> {
        let Some(magic) = self.peek::<zerocopy::big_endian::U32>() else { return Ok(Step::Starved) };
        match magic.get() {
            SIMPLE_REPLY_MAGIC => {
                let Some(reply) = self.take::<SimpleReply>() else { return Ok(Step::Starved) };
                self.simple(&reply, tasks, export, sending)
            }
            STRUCTURED_REPLY_MAGIC if export.structured => {
                let Some(header) = self.take::<ChunkHeader>() else { return Ok(Step::Starved) };
                self.chunk(header, tasks, sending)
            }
            _ => Err(NbdError::Lied("its answer starts with neither reply's magic number")),
        }
    }

    fn simple(
        &mut self,
        reply: &SimpleReply,
        tasks: &mut Tasks,
        export: &Export,
        sending: Option<u16>,
    ) -> Result<Step, NbdError> {
        let (tag, task) = tasks.answered(reply.cookie.get())?;
        let (sent, place) = sent_of(task, tag, sending)?;
        if sent.errors > 0 || !sent.coverage.is_empty() {
            return Err(NbdError::Lied("it answered a request in both ways"));
        }
        if let Some(error) = error_of(reply.error.get())? {
            sent.error = Some(error);
            return Ok(Step::Ended(tag));
        }
        if sent.kind != command::READ {
            return Ok(Step::Ended(tag));
        }
        if export.structured {
            return Err(NbdError::Lied("it answered a read in the way that was given up"));
        }
        let left = usize::try_from(sent.len).unwrap_or(usize::MAX);
        // All that is to be read comes in one piece.
        let (start, end) = (sent.offset, sent.end());
        if !sent.coverage.add(start, end) {
            return Err(NOTHING_SENT);
        }
        self.state = State::Data(Stretch { tag, left, is_last: true }, place);
        Ok(Step::On)
    }

    fn chunk(&mut self, header: ChunkHeader, tasks: &mut Tasks, sending: Option<u16>) -> Result<Step, NbdError> {
        let (tag, task) = tasks.answered(header.cookie.get())?;
        let (sent, _) = sent_of(task, tag, sending)?;
        let (length, is_last) = (header.length.get(), header.flags.get() & chunk::DONE != 0);
        match header.kind.get() {
            chunk::NONE if length == 0 && is_last => return ended(sent, tag),
            chunk::NONE => return Err(NbdError::Lied("its empty chunk is not the last or not empty")),
            chunk::OFFSET_DATA if sent.kind == command::READ && length > 8 => {}
            chunk::OFFSET_HOLE if sent.kind == command::READ && length as usize == size_of::<Hole>() => {}
            kind if kind & chunk::IS_ERROR != 0 && (6..=LONGEST_ERROR).contains(&length) => {}
            _ => {
                return Err(NbdError::Lied("its chunk is of no kind that answers the request, or of no length for it"));
            }
        }
        self.state = State::Body(header);
        Ok(Step::On)
    }

    /// What stands at the start of a chunk's data.
    fn body(&mut self, header: ChunkHeader, tasks: &mut Tasks) -> Result<Step, NbdError> {
        let (length, is_last) = (header.length.get() as usize, header.flags.get() & chunk::DONE != 0);
        let (tag, task) = tasks.answered(header.cookie.get())?;
        match header.kind.get() {
            chunk::OFFSET_DATA => {
                let Some(offset) = self.take::<zerocopy::big_endian::U64>() else { return Ok(Step::Starved) };
                let left = length.saturating_sub(8);
                let at = cover(task, offset.get(), left as u64)?;
                self.state = State::Data(Stretch { tag, left, is_last }, at);
                Ok(Step::On)
            }
            chunk::OFFSET_HOLE => {
                let Some(hole) = self.take::<Hole>() else { return Ok(Step::Starved) };
                let len = hole.length.get();
                let at = cover(task, hole.offset.get(), len.into())?;
                if let Some((buffers, _)) = task.memory() {
                    buffers.fill(at, len as usize, 0);
                }
                self.end_chunk(Stretch { tag, left: 0, is_last }, tasks)
            }
            _ => {
                let Some(error) = self.take::<ChunkError>() else { return Ok(Step::Starved) };
                let left = length.saturating_sub(size_of::<ChunkError>());
                let sent = task.sent.as_mut().ok_or(NOTHING_SENT)?;
                sent.errors += 1;
                let of_success = NbdError::Lied("it tells of an error without saying which");
                let told = error_of(error.error.get())?.ok_or(of_success)?;
                if usize::from(error.message_length.get()) > left || sent.errors > MOST_ERRORS {
                    return Err(NbdError::Lied("it does not come to an end about an error"));
                }
                sent.error.get_or_insert(told);
                self.state = State::Skip(Stretch { tag, left, is_last });
                Ok(Step::On)
            }
        }
    }

    /// Bytes of a read: those that are staged already, the rest straight from the socket if they are many.
    fn data(&mut self, socket: BorrowedFd<'_>, tasks: &mut Tasks, data: Stretch, at: usize) -> Result<Step, NbdError> {
        if data.left == 0 {
            return self.end_chunk(data, tasks);
        }
        let (buffers, _) = tasks.get(data.tag).and_then(Task::memory).ok_or(NOTHING_SENT)?;
        let staged = self.staging.get(self.start..self.end).unwrap_or_default();
        let moved = if !staged.is_empty() {
            let staged = staged.get(..data.left).unwrap_or(staged);
            buffers.write(at, staged);
            self.start += staged.len();
            staged.len()
        } else if data.left >= DIRECT {
            let part = Part { buffers, at, len: fitting(buffers, at, data.left) };
            match read_vectored(socket, &mut [], &[part]) {
                Ok(0) => return Err(NbdError::Ended),
                Ok(moved) => {
                    self.calls += 1;
                    moved
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Dry),
                Err(error) => return Err(error.into()),
            }
        } else {
            return Ok(Step::Starved);
        };
        self.state = State::Data(data.after(moved), at + moved);
        Ok(Step::On)
    }

    /// A message that nobody reads.
    fn skip(&mut self, tasks: &mut Tasks, skipped: Stretch) -> Result<Step, NbdError> {
        if skipped.left == 0 {
            return self.end_chunk(skipped, tasks);
        }
        let moved = skipped.left.min(self.end - self.start);
        if moved == 0 {
            return Ok(Step::Starved);
        }
        self.start += moved;
        self.state = State::Skip(skipped.after(moved));
        Ok(Step::On)
    }

    fn end_chunk(&mut self, Stretch { tag, is_last, .. }: Stretch, tasks: &mut Tasks) -> Result<Step, NbdError> {
        self.state = State::Header;
        if !is_last {
            return Ok(Step::On);
        }
        let sent = tasks.get_mut(tag).and_then(|task| task.sent.as_mut()).ok_or(NOTHING_SENT)?;
        ended(sent, tag)
    }

    /// Reads more into the staging buffer. False if there is nothing to read.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<bool, NbdError> {
        self.staging.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = self.staging.get_mut(self.end..).unwrap_or_default();
        match read_vectored(socket, room, &[]) {
            Ok(0) => Err(NbdError::Ended),
            Ok(read) => {
                self.end += read;
                self.calls += 1;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn peek<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(&self) -> Option<T> {
        let there = self.staging.get(self.start..self.end)?;
        T::read_from_prefix(there).ok().map(|(value, _)| value)
    }

    fn take<T: FromBytes + IntoBytes + zerocopy::KnownLayout + zerocopy::Immutable>(&mut self) -> Option<T> {
        let value = self.peek()?;
        self.start += size_of::<T>();
        Some(value)
    }
}

/// What a part of an answer led to.
enum Step {
    /// The request of this tag has its answer.
    Ended(u16),
    /// To the next part.
    On,
    /// The staging buffer has to hold more for the next part.
    Starved,
    /// The socket has no more.
    Dry,
}

const NOTHING_SENT: NbdError = NbdError::Lied("it goes on with a request that has ended");

/// The request that is answered, and where the memory of its first byte is.
fn sent_of(task: &mut Task, tag: u16, sending: Option<u16>) -> Result<(&mut Sent, usize), NbdError> {
    if sending == Some(tag) {
        return Err(NbdError::Lied("it answered a write of which it has not had all data"));
    }
    let place = task.sent.as_ref().and_then(|sent| task.place_of(sent.offset)).unwrap_or_default();
    task.sent.as_mut().map(|sent| (sent, place)).ok_or(NOTHING_SENT)
}

/// Notes that data for a part of a read come. Returns where in the memory they belong.
fn cover(task: &mut Task, offset: u64, len: u64) -> Result<usize, NbdError> {
    let place = task.place_of(offset);
    let sent = task.sent.as_mut().ok_or(NOTHING_SENT)?;
    let end = offset.checked_add(len).filter(|end| offset >= sent.offset && *end <= sent.end());
    let end = end.ok_or(NbdError::Lied("it sent data from beyond what was to be read"))?;
    if !sent.coverage.add(offset, end) {
        return Err(NbdError::Lied("it sent the same data twice, or in more pieces than it should"));
    }
    place.ok_or(NOTHING_SENT)
}

/// The end of an answer in chunks.
fn ended(sent: &Sent, tag: u16) -> Result<Step, NbdError> {
    if sent.kind == command::READ && sent.error.is_none() && !sent.coverage.is_whole(sent.offset, sent.end()) {
        return Err(NbdError::Lied("it calls a read done of which it has not sent all"));
    }
    Ok(Step::Ended(tag))
}

/// What a server's number means; `None` if all is well.
fn error_of(number: u32) -> Result<Option<io::Error>, NbdError> {
    match i32::try_from(number).unwrap_or(libc::EIO) {
        0 => Ok(None),
        // It has not done it, and will not: that is for the next server.
        _ if number == SHUTDOWN => Err(NbdError::Ended),
        known if KNOWN_ERRORS.contains(&known) => Ok(Some(io::Error::from_raw_os_error(known))),
        _ => Ok(Some(io::Error::from_raw_os_error(libc::EIO))),
    }
}
