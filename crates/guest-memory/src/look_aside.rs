//! What a view remembers of the cache, so that the common look-up takes no lock and counts no reference.
//!
//! Direct mapped: a chunk has one place it can be in. The chunk that is displaced from there stays alive with the rest
//! until a call with `&mut self`, when the borrow checker has shown that no slice of it is left.
#![expect(unsafe_code, reason = "turns remembered host addresses back into slices; what they point into is held here")]

use std::{
    cell::{Cell, RefCell},
    ptr,
    sync::Arc,
};

use vm_memory::VolatileSlice;

use crate::{CHUNK_SIZE, chunk::Chunk};

/// Places, and so the chunks that a view can hold: 4 MiB, the rings, headers and buffers of a queue or two.
pub(crate) const PLACES: usize = 64;

/// A run of pages. Kept small: two of them share a cache line.
#[derive(Clone, Copy)]
struct Entry {
    /// Guest address of the first byte.
    address: u64,
    len: u64,
    host: *mut u8,
    generation: u64,
}

/// Matches nothing: generations start at one.
const NOTHING: Entry = Entry { address: 0, len: 0, host: ptr::null_mut(), generation: 0 };

pub(crate) struct LookAside {
    /// Invariant: the memory of `entries[i]` belongs to the chunk `held[i]`; what was handed out of it since the last
    /// call with `&mut self` belongs to that one or to one of `displaced`.
    entries: [Cell<Entry>; PLACES],
    pins: RefCell<Pins>,
}

struct Pins {
    held: [Option<Arc<Chunk>>; PLACES],
    displaced: Vec<Arc<Chunk>>,
}

// SAFETY: the host addresses point into the chunks of `pins`, which go to the other thread with them, and chunks may be
// used from any thread.
unsafe impl Send for LookAside {}

impl LookAside {
    pub(crate) fn new() -> Self {
        let pins = Pins { held: [const { None }; PLACES], displaced: Vec::new() };
        Self { entries: [const { Cell::new(NOTHING) }; PLACES], pins: RefCell::new(pins) }
    }

    /// The memory at `address`, up to `len` bytes of it, if it is remembered and of this generation.
    #[inline]
    pub(crate) fn find(&self, address: u64, len: usize, generation: u64) -> Option<VolatileSlice<'_>> {
        let entry = self.place(address).get();
        let offset = address.wrapping_sub(entry.address);
        if offset >= entry.len || entry.generation != generation {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "both are at most CHUNK_SIZE")]
        let (offset, rest) = (offset as usize, (entry.len - offset) as usize);
        // SAFETY: offset is below the entry's length, which is that of the memory at `host`.
        let host = unsafe { entry.host.add(offset) };
        // SAFETY: `rest` bytes from here are mapped, readable and writable, and stay so while `self` is borrowed: by
        // the invariant of `entries` their chunk is in `pins`, which only calls with `&mut self` let go of.
        Some(unsafe { VolatileSlice::new(host, len.min(rest)) })
    }

    /// Remembers the run of `chunk` around `address`. Nothing is remembered if that is a hole.
    pub(crate) fn remember(&self, address: u64, chunk: Arc<Chunk>) {
        let Some(run) = chunk.run(address % CHUNK_SIZE) else { return };
        let host = run.memory.ptr_guard_mut().as_ptr();
        let entry = Entry { address: run.address, len: run.memory.len() as u64, host, generation: chunk.generation() };
        let pins = &mut *self.pins.borrow_mut();
        let held = pins.held.get_mut(place_of(address)).expect("places are counted modulo their number");
        pins.displaced.extend(held.replace(chunk));
        self.place(address).set(entry);
    }

    /// Like [`find`](Self::find), for `take` to keep the chunk as long as it uses the memory beyond the borrow.
    #[inline]
    pub(crate) fn find_pinned<T>(
        &self,
        address: u64,
        len: usize,
        generation: u64,
        take: impl FnOnce(VolatileSlice<'_>, &Arc<Chunk>) -> T,
    ) -> Option<T> {
        let memory = self.find(address, len, generation)?;
        let pins = self.pins.borrow();
        let chunk = pins.held.get(place_of(address))?.as_ref()?;
        Some(take(memory, chunk))
    }

    /// Lets go of what is not of this generation.
    pub(crate) fn forget_stale(&mut self, generation: u64) {
        let pins = self.pins.get_mut();
        for (entry, held) in self.entries.iter_mut().zip(&mut pins.held) {
            if entry.get().generation != generation {
                entry.set(NOTHING);
                *held = None;
            }
        }
    }

    /// Lets go of what other chunks took the place of; they were in use until `now`.
    #[inline]
    pub(crate) fn forget_displaced(&mut self, now: u64) {
        let displaced = &mut self.pins.get_mut().displaced;
        if !displaced.is_empty() {
            displaced.drain(..).for_each(|chunk| chunk.touch(now));
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }

    #[expect(clippy::indexing_slicing, reason = "places are counted modulo their number")]
    fn place(&self, address: u64) -> &Cell<Entry> {
        &self.entries[place_of(address)]
    }
}

fn place_of(address: u64) -> usize {
    (address / CHUNK_SIZE % PLACES as u64) as usize
}
