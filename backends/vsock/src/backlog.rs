//! What a guest sent and its socket did not take yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use guest_memory::Buffers;

/// Bytes in order. Its user bounds them; memory is no more than the next power of two.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: VecDeque<u8>,
}

/// An empty backlog keeps up to this much memory, in bytes.
const KEPT: usize = 4096;

impl Backlog {
    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies `len` bytes from the guest, from `at` on.
    pub(crate) fn append(&mut self, from: &Buffers, at: usize, len: usize) {
        let before = self.bytes.len();
        if before + len > self.bytes.capacity() {
            self.bytes.reserve_exact((before + len).next_power_of_two() - before);
        }
        self.bytes.resize(before + len, 0);
        let (front, back) = self.bytes.as_mut_slices();
        let (front_before, back_before) = (before.min(front.len()), before.saturating_sub(front.len()));
        let (_, front) = front.split_at_mut(front_before);
        let (_, back) = back.split_at_mut(back_before);
        let copied = from.read(at, front);
        from.read(at + copied, back);
    }

    /// Writes to a socket what it takes. Returns how much that was.
    ///
    /// # Errors
    /// As of `writev(2)`; nothing was written then.
    pub(crate) fn write_to(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let (front, back) = self.bytes.as_slices();
        let parts = [IoSlice::new(front), IoSlice::new(back)];
        let written = rustix::io::retry_on_intr(|| rustix::io::writev(&socket, &parts))?;
        self.bytes.drain(..written);
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT {
            self.bytes = VecDeque::new();
        }
        Ok(written)
    }
}
