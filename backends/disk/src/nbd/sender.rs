//! Requests on their way out: several headers in one call, and data straight from the guest's memory.

use std::io;
use std::os::fd::BorrowedFd;

use guest_memory::{Buffers, Part, write_vectored};
use zerocopy::IntoBytes;

use super::task::{Outgoing, Payload, Tasks};
use super::wire::{REQUEST_MAGIC, RequestHeader};

/// Headers collected before they are sent: about a hundred.
const FULL: usize = 3 << 10;

/// The most buffers given to one call; the kernel takes 1,024.
const MOST_BUFFERS: usize = 1000;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What has been promised to the server and not been sent.
#[derive(Default)]
pub(super) struct Sender {
    /// Headers; the last one's data are `payload`.
    head: Vec<u8>,
    /// Bytes of `head` that are sent.
    sent: usize,
    payload: Option<Data>,
}

#[derive(Clone, Copy)]
struct Data {
    tag: u16,
    payload: Payload,
    left: usize,
}

impl Sender {
    /// Whether another request can be added.
    pub(super) fn has_room(&self) -> bool {
        self.payload.is_none() && self.head.len() < FULL
    }

    /// Whether everything that was added is with the kernel.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.head.len() && self.payload.is_none()
    }

    /// Whose data are being sent: its memory has to stay.
    pub(super) fn in_use(&self) -> Option<u16> {
        self.payload.map(|data| data.tag)
    }

    /// Adds a request; there is [room](Self::has_room).
    pub(super) fn add(&mut self, tag: u16, cookie: u64, request: &Outgoing) {
        let Outgoing { kind, flags, offset, len, payload } = *request;
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            length: len.into(),
        };
        self.head.extend_from_slice(header.as_bytes());
        self.payload = (payload != Payload::None).then_some(Data { tag, payload, left: len as usize });
    }

    /// Sends what the kernel takes.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock): it takes no more for now. Others: the connection is gone.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, tasks: &Tasks) -> io::Result<()> {
        while !self.is_empty() {
            let moved = self.send_some(socket, tasks)?;
            self.advance(moved);
        }
        (self.sent, self.payload) = (0, None);
        self.head.clear();
        Ok(())
    }

    fn send_some(&self, socket: BorrowedFd<'_>, tasks: &Tasks) -> io::Result<usize> {
        let head = self.head.get(self.sent..).unwrap_or_default();
        match self.payload {
            None => write_vectored(socket, head, &[]),
            // Of the zeroes only what goes out by itself: they are rare, and behind a header they would be a copy.
            Some(Data { payload: Payload::Zeroes, .. }) if !head.is_empty() => write_vectored(socket, head, &[]),
            Some(Data { payload: Payload::Zeroes, left, .. }) => {
                write_vectored(socket, ZEROES.get(..left).unwrap_or(&ZEROES), &[])
            }
            Some(Data { tag, payload: Payload::Memory { at }, left }) => {
                let (buffers, _) = tasks.get(tag).and_then(|task| task.memory()).ok_or(io::ErrorKind::InvalidData)?;
                write_vectored(socket, head, &[Part { buffers, at, len: fitting(buffers, at, left) }])
            }
            Some(Data { payload: Payload::None, .. }) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn advance(&mut self, moved: usize) {
        let of_head = moved.min(self.head.len() - self.sent);
        self.sent += of_head;
        let moved = moved - of_head;
        if let Some(data) = &mut self.payload {
            data.left = data.left.saturating_sub(moved);
            if let Payload::Memory { at } = &mut data.payload {
                *at += moved;
            }
            if data.left == 0 {
                self.payload = None;
            }
        }
    }
}

/// How many of `len` bytes from `at` on one call takes.
pub(super) fn fitting(buffers: &Buffers, at: usize, len: usize) -> usize {
    if buffers.iovecs().len() <= MOST_BUFFERS {
        return len;
    }
    buffers.clip(at, len).iter().take(MOST_BUFFERS).map(|buffer| buffer.iov_len).sum()
}
