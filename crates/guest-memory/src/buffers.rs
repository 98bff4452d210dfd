//! The guest memory of one request, owned by it.
#![expect(
    unsafe_code,
    reason = "host addresses outlive the borrow they came from; the pins beside them keep them mapped"
)]

use std::{fmt, sync::Arc};

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::{Access, chunk::Chunk, copied::Copies, grants::GrantedPages, scratch::Scratch};

/// A list of buffers in the form that `preadv` and io_uring take. Valid for as long as the [`Buffers`] it came from.
pub type IoVecs = SmallVec<[libc::iovec; 2]>;

/// The guest memory of one request in one direction: where it is, and what keeps it mapped.
///
/// Owned and `Send`: it outlives the pass that made it, the cache's entry, the view, and an invalidation. The guest can
/// change the bytes at any time; copy out what is to be checked before it is used, once.
///
/// Offsets count through all buffers as if they were one.
///
/// Pieces of granted pages that are small stand in memory of ours: what the driver wrote there has been copied from the
/// guest before the request was handed out, and what the device writes is copied to the guest when the request is pushed.
///
/// Lists, not arrays, as it is moved with every request; a request that is used again brings them along.
#[derive(Default)]
pub struct Buffers {
    /// Invariant: each lies in one of `chunks`, or in what `granted` keeps.
    iovecs: Vec<libc::iovec>,
    chunks: Vec<Arc<Chunk>>,
    len: usize,
    granted: Option<Box<Granted>>,
}

/// What granted memory needs, and frames do not.
#[derive(Default)]
struct Granted {
    /// Invariant: their memory is in `scratch`.
    copies: Copies,
    pages: Vec<GrantedPages>,
    scratch: Vec<Scratch>,
    /// Some of it is mapped for reading only.
    read_only: bool,
}

// SAFETY: iovecs and copies point into what stands beside them, which goes along and may be used from any thread.
unsafe impl Send for Buffers {}
// SAFETY: shared, it allows volatile copies only, which race with the guest's own accesses anyway.
unsafe impl Sync for Buffers {}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of guest memory in {} buffers", self.len, self.iovecs.len())
    }
}

impl Buffers {
    /// No memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets go of all memory; keeps its own allocations for the next request.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.chunks.clear();
        self.granted = None;
        self.len = 0;
    }

    /// Copies from the guest into `to`. Returns how many bytes there were from `at` on, at most `to.len()`.
    pub fn read(&self, at: usize, to: &mut [u8]) -> usize {
        if let Some(memory) = self.within(at, to.len()) {
            return memory.copy_to(to);
        }
        let mut rest = to;
        let mut done = 0;
        for memory in self.slices(at, rest.len()) {
            let (part, tail) = rest.split_at_mut(memory.len());
            done += memory.copy_to(part);
            rest = tail;
        }
        done
    }

    /// Copies `from` to the guest. Returns how many bytes there was room for from `at` on, at most `from.len()`. These have to be
    /// the buffers that the driver made for the device to write to: of granted pages, others have no room; of frames, others
    /// are written to all the same.
    pub fn write(&self, at: usize, from: &[u8]) -> usize {
        if let (Some(memory), None) = (self.within(at, from.len()), &self.granted) {
            memory.copy_from(from);
            return from.len();
        }
        let mut rest = from;
        for memory in self.slices(at, self.room(from.len())) {
            let (part, tail) = rest.split_at(memory.len());
            memory.copy_from(part);
            rest = tail;
        }
        let done = from.len() - rest.len();
        self.touch(at, done);
        done
    }

    /// As [`read`](Self::read), into memory that others may change at any time.
    pub fn read_volatile(&self, at: usize, to: VolatileSlice<'_>) -> usize {
        self.with_volatile(at, to, to.len(), |guest, other| guest.copy_to_volatile_slice(other))
    }

    /// As [`write`](Self::write), from memory that others may change at any time.
    pub fn write_volatile(&self, at: usize, from: VolatileSlice<'_>) -> usize {
        let done =
            self.with_volatile(at, from, self.room(from.len()), |guest, other| other.copy_to_volatile_slice(guest));
        self.touch(at, done);
        done
    }

    fn touch(&self, at: usize, len: usize) {
        if let Some(granted) = &self.granted {
            granted.copies.touch(at, len);
        }
    }

    /// How many of `len` bytes may be written.
    fn room(&self, len: usize) -> usize {
        if self.granted.as_ref().is_some_and(|granted| granted.read_only) { 0 } else { len }
    }

    fn with_volatile(
        &self,
        at: usize,
        other: VolatileSlice<'_>,
        len: usize,
        copy: impl Fn(VolatileSlice<'_>, VolatileSlice<'_>),
    ) -> usize {
        let mut done = 0;
        for guest in self.slices(at, len) {
            let Ok(part) = other.subslice(done, guest.len()) else { break };
            copy(guest, part);
            done += guest.len();
        }
        done
    }

    /// Sets up to `len` bytes from `at` on to `byte`. Returns how many.
    pub fn fill(&self, at: usize, len: usize, byte: u8) -> usize {
        let pattern = [byte; 512];
        let mut done = 0;
        while done < len {
            let part = pattern.get(..len - done).unwrap_or(&pattern);
            let written = self.write(at.saturating_add(done), part);
            done += written;
            if written < part.len() {
                break;
            }
        }
        done
    }

    /// All buffers, for a system call on this thread or one that completes before `self` is dropped.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// The `len` bytes from `at` on, if they are whole buffers.
    pub fn whole(&self, at: usize, len: usize) -> Option<&[libc::iovec]> {
        let (mut first, mut skip) = (0, at);
        while skip > 0 {
            skip = skip.checked_sub(self.iovecs.get(first)?.iov_len)?;
            first += 1;
        }
        let (mut last, mut left) = (first, len);
        while left > 0 {
            left = left.checked_sub(self.iovecs.get(last)?.iov_len)?;
            last += 1;
        }
        self.iovecs.get(first..last)
    }

    /// The buffers of up to `len` bytes from `at` on.
    pub fn clip(&self, at: usize, len: usize) -> IoVecs {
        self.pieces(at, len).collect()
    }

    /// Whether each buffer starts and ends at a multiple of `alignment` bytes, a power of two.
    pub fn is_aligned_to(&self, alignment: usize) -> bool {
        let bits = self.iovecs.iter().fold(0, |bits, iovec| bits | iovec.iov_base.addr() | iovec.iov_len);
        bits & alignment.wrapping_sub(1) == 0
    }

    /// Whether all of it may be pinned by the kernel, as O_DIRECT and registered buffers need. Such calls with other
    /// memory fail with EFAULT, or leave granted pages in use that the driver takes back.
    pub fn direct_io_capable(&self) -> bool {
        // The kernel could pin mapped grants. But it lets go of the pages a moment after it has told of the I/O's end
        // (Linux, iomap_dio_bio_end_io), and a page that is still held then cannot be unmapped when its driver wants it back.
        let is_mapped = self.granted.as_ref().is_some_and(|granted| !granted.pages.is_empty());
        !is_mapped && self.chunks.iter().all(|chunk| chunk.direct_io_capable())
    }

    /// Adds memory of a chunk at the end. What continues the last buffer becomes part of it.
    pub(crate) fn push(&mut self, memory: VolatileSlice<'_>, chunk: &Arc<Chunk>) {
        let (base, len) = (memory.ptr_guard_mut().as_ptr(), memory.len());
        let same_chunk = self.chunks.last().is_some_and(|last| Arc::ptr_eq(last, chunk));
        if !same_chunk {
            self.chunks.push(Arc::clone(chunk));
        }
        match self.iovecs.last_mut() {
            Some(last) if same_chunk && last.iov_base.addr() + last.iov_len == base.addr() => last.iov_len += len,
            _ => self.iovecs.push(libc::iovec { iov_base: base.cast(), iov_len: len }),
        }
        self.len += len;
    }

    /// Adds a part of scratch memory, which [`keep_scratch`](Self::keep_scratch) keeps from then on, for what is at
    /// `address`.
    pub(crate) fn push_copied(&mut self, address: u64, part: VolatileSlice<'_>) {
        let at = self.len;
        self.granted.get_or_insert_default().copies.push(address, at, part);
        self.push_iovec(part);
    }

    /// Keeps the pages of what was pushed, and of nothing else, mapped.
    pub(crate) fn keep_granted(&mut self, pages: GrantedPages, access: Access) {
        let granted = self.granted.get_or_insert_default();
        granted.pages.push(pages);
        granted.read_only |= access == Access::Read;
    }

    pub(crate) fn keep_scratch(&mut self, scratch: Scratch) {
        self.granted.get_or_insert_default().scratch.push(scratch);
    }

    /// Adds memory at the end, of what is kept from then on.
    pub(crate) fn push_iovec(&mut self, part: VolatileSlice<'_>) {
        self.iovecs.push(libc::iovec { iov_base: part.ptr_guard_mut().as_ptr().cast(), iov_len: part.len() });
        self.len += part.len();
    }

    /// What of it has to be copied from and to granted pages.
    pub(crate) fn copies(&self) -> Option<&Copies> {
        self.granted.as_ref().map(|granted| &granted.copies)
    }

    /// Whether some of what was written has yet to be copied to the guest, by [`View::copy_out`](crate::View::copy_out).
    pub fn is_to_be_stored(&self) -> bool {
        self.copies().is_some_and(|copies| copies.len() > 0)
    }

    /// The `len` bytes from `at` on, if they lie in one buffer.
    #[inline]
    fn within(&self, at: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let mut skip = at;
        for buffer in &self.iovecs {
            if skip < buffer.iov_len {
                let base = buffer.iov_base.wrapping_byte_add(skip).cast();
                // SAFETY: these bytes are mapped, readable and writable as long as `chunks` or `granted` keep them, that
                // is while `self` is borrowed.
                return (len <= buffer.iov_len - skip).then(|| unsafe { VolatileSlice::new(base, len) });
            }
            skip -= buffer.iov_len;
        }
        None
    }

    fn slices(&self, at: usize, len: usize) -> impl Iterator<Item = VolatileSlice<'_>> {
        // SAFETY: each piece lies in a buffer, which is mapped, readable and writable as long as `chunks` or `granted` keep
        // it, that is while `self` is borrowed.
        self.pieces(at, len).map(|piece| unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) })
    }

    /// The buffers cut to `len` bytes from `at` on; none is empty.
    pub(crate) fn pieces(&self, at: usize, len: usize) -> impl Iterator<Item = libc::iovec> + use<'_> {
        let (mut skip, mut left) = (at, len);
        self.iovecs.iter().filter_map(move |buffer| {
            let skipped = skip.min(buffer.iov_len);
            let iov_len = left.min(buffer.iov_len - skipped);
            skip -= skipped;
            left -= iov_len;
            let iov_base = buffer.iov_base.wrapping_byte_add(skipped);
            (iov_len > 0).then_some(libc::iovec { iov_base, iov_len })
        })
    }
}
