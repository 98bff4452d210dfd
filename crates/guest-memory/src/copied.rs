//! The pieces of a request that stand in our memory in the place of granted pages: what is copied in before the request
//! is handed out, and out before it is given back.
#![expect(unsafe_code, reason = "host addresses outlive the borrow they came from; the request's pins keep the memory")]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use vm_memory::VolatileSlice;

use crate::{Access, AccessError, GrantCopy, grants::cut};

/// The copied pieces of a request in one direction. Offsets are those of its buffers.
#[derive(Default)]
pub(crate) struct Copies {
    pieces: Vec<Copied>,
    touched: Touched,
}

struct Copied {
    /// Guest address of the piece.
    address: u64,
    /// Where it is in the buffers.
    at: usize,
    /// Where it is in our memory.
    memory: *mut u8,
    len: usize,
}

/// From the first to the last byte that was written, otherwise than by a system call, of which only the caller knows.
struct Touched {
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Default for Touched {
    fn default() -> Self {
        Self { start: AtomicUsize::new(usize::MAX), end: AtomicUsize::new(0) }
    }
}

impl Copies {
    /// `ours` stands at `at` for what is at the guest's `address`. It must be kept as long as this is.
    pub(crate) fn push(&mut self, address: u64, at: usize, ours: VolatileSlice<'_>) {
        self.pieces.push(Copied { address, at, memory: ours.ptr_guard_mut().as_ptr(), len: ours.len() });
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Notes that `len` bytes from `at` on were written.
    pub(crate) fn touch(&self, at: usize, len: usize) {
        if len > 0 && !self.pieces.is_empty() {
            self.touched.start.fetch_min(at, Relaxed);
            self.touched.end.fetch_max(at.saturating_add(len), Relaxed);
        }
    }

    /// Adds what is to be copied from the guest.
    pub(crate) fn inward<'a>(&'a self, copies: &mut Vec<GrantCopy<'a>>) -> Result<(), AccessError> {
        self.pieces.iter().try_for_each(|piece| piece.copy(0, piece.len, Access::Read, copies))
    }

    /// Adds what is to be copied to the guest: the first `written` bytes, and what was [touched](Self::touch).
    pub(crate) fn outward<'a>(&'a self, written: usize, copies: &mut Vec<GrantCopy<'a>>) -> Result<(), AccessError> {
        let start = if written > 0 { 0 } else { self.touched.start.load(Relaxed) };
        let end = self.touched.end.load(Relaxed).max(written);
        self.pieces.iter().try_for_each(|piece| {
            let (start, end) = (start.saturating_sub(piece.at), end.saturating_sub(piece.at).min(piece.len));
            if start < end { piece.copy(start, end, Access::Write, copies) } else { Ok(()) }
        })
    }
}

impl Copied {
    /// Adds the bytes from `start` to `end`, which is not beyond the piece's own.
    fn copy<'a>(
        &'a self,
        start: usize,
        end: usize,
        access: Access,
        copies: &mut Vec<GrantCopy<'a>>,
    ) -> Result<(), AccessError> {
        // SAFETY: who pushed the piece keeps this memory, which is as long, and it may be written by anyone.
        let ours = unsafe { VolatileSlice::new(self.memory.wrapping_add(start), end - start) };
        cut(self.address.wrapping_add(start as u64), ours, access, copies)
    }
}
