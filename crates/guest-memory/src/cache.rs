//! The map cache of one guest: what is mapped stays mapped, within a budget, until the guest's memory changes.
//!
//! Shared by all lanes, each behind a [`View`](crate::View). The lock covers look-ups and book-keeping only: mapping
//! and unmapping, hypercalls a page each, happen outside it. So two lanes that miss the same chunk both map it and the
//! later one drops its own: rare, and cheaper than that every lane waits for every other's hypercalls.

use std::sync::{
    Arc, PoisonError,
    atomic::{
        self,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use crate::{
    AccessError, Budget, CHUNK_SIZE, PageSource, Route, Sources, Stats,
    address::CHUNK_FRAMES,
    budget::{Account, Reservation},
    chunk::Chunk,
    grants::Grants,
    stats::{Counter, Counters},
    sync::{AtomicU64, Mutex, MutexGuard},
    table::{Evicted, Table},
};

/// Zero is left for "nothing".
const FIRST_GENERATION: u64 = 1;

/// The map cache of one guest. A guest that reboots is a new domain: make a new cache.
pub struct MapCache {
    frames: Option<Box<dyn PageSource>>,
    grants: Option<Arc<Grants>>,
    copied_together: usize,
    kept: usize,
    account: Arc<Account>,
    signals: Signals,
    /// Ticks with each look-up that reaches the table: the time of "least recently used".
    clock: atomic::AtomicU64,
    table: Mutex<Table>,
    counters: Arc<Counters>,
}

/// What every look-up of every lane reads and few ever write. Alone in its cache lines (two, as processors fetch them
/// in pairs), so that a lane's miss does not slow the others' hits.
#[repr(align(128))]
struct Signals {
    /// Bumped by each invalidation; what was mapped under another value is stale.
    generation: AtomicU64,
    /// Bumped when a look-up found all of the budget in use; tells the other views to let go of what they can.
    pressure: AtomicU64,
}

impl MapCache {
    /// An empty cache over the ways to the guest's pages.
    pub fn new(sources: impl Into<Sources>, budget: Budget) -> Arc<Self> {
        let Sources { frames, grants, copied_together } = sources.into();
        let counters = Arc::<Counters>::default();
        Arc::new(Self {
            frames,
            grants: grants.map(|source| Arc::new(Grants::new(source, Arc::clone(&counters)))),
            copied_together,
            kept: budget.kept_chunks(),
            account: Account::new(budget),
            signals: Signals { generation: AtomicU64::new(FIRST_GENERATION), pressure: AtomicU64::new(0) },
            clock: atomic::AtomicU64::new(0),
            table: Mutex::default(),
            counters,
        })
    }

    /// Whether addresses that name granted pages are served.
    pub fn reaches_grants(&self) -> bool {
        self.grants.is_some()
    }

    /// Whether addresses that name the guest's frames are served.
    pub fn reaches_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// Declares all mappings stale: no look-up that starts from here on uses them.
    ///
    /// For the pump, before it answers `IOREQ_TYPE_INVALIDATE` (Xen, `public/hvm/ioreq.h`): one atomic addition, no
    /// lock, no unmapping. Requests in flight keep what they hold. A [`sweep`](Self::sweep) should follow soon, or the
    /// pages that the guest gave up stay allocated.
    pub fn invalidate(&self) {
        self.signals.generation.fetch_add(1, Release);
    }

    /// Unmaps what is stale and in nobody's hands. Not for the pump: it unmaps on the caller's time.
    pub fn sweep(&self) {
        let stale = self.table().take_stale(self.generation());
        drop(stale);
    }

    /// What it did, and holds now.
    pub fn stats(&self) -> Stats {
        let unpinned = self.table().unpinned_bytes();
        let bytes_mapped = self.account.bytes();
        Stats {
            invalidations: self.generation() - FIRST_GENERATION,
            bytes_mapped,
            bytes_pinned: bytes_mapped.saturating_sub(unpinned),
            ..self.counters.snapshot()
        }
    }

    /// The generation of the guest's memory now. Read it before mapping: what raced an invalidation is born stale.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.signals.generation.load(Acquire)
    }

    /// Changes when a look-up was refused for want of room.
    pub(crate) fn pressure(&self) -> u64 {
        self.signals.pressure.load(Relaxed)
    }

    /// The time for [`Chunk::touch`].
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    pub(crate) fn count_hits(&self, hits: u64) {
        self.counters.add(Counter::Hits, hits);
    }

    /// Bytes of granted memory that are copied rather than mapped, of a request in one direction.
    pub(crate) fn copied_together(&self) -> usize {
        self.copied_together
    }

    /// Bytes that one buffer may have.
    pub(crate) fn largest_buffer(&self) -> u64 {
        self.account.largest_buffer()
    }

    /// The chunk that has the byte at `address`, from the table or newly mapped.
    pub(crate) fn chunk(&self, address: u64) -> Result<Arc<Chunk>, AccessError> {
        let (number, offset) = match Route::of(address) {
            Route::Frame { chunk, offset } => (chunk, offset),
            Route::Grant { reference, .. } => return Err(AccessError::NoGrantSource { reference }),
        };
        let Some(source) = &self.frames else { return Err(AccessError::GrantsOnly { address }) };
        let now = self.clock.fetch_add(1, Relaxed) + 1;
        let generation = self.generation();
        let found = self.table().find(number, offset, generation);
        let chunk = match found {
            Some(chunk) => {
                self.counters.add(Counter::Refills, 1);
                chunk
            }
            None => self.map(source.as_ref(), number, offset, generation).inspect_err(|error| self.note(error))?,
        };
        chunk.touch(now);
        Ok(chunk)
    }

    fn map(
        &self,
        source: &dyn PageSource,
        number: u64,
        offset: u64,
        generation: u64,
    ) -> Result<Arc<Chunk>, AccessError> {
        self.counters.add(Counter::Misses, 1);
        if self.table().len() >= self.kept {
            self.evict();
        }
        let reservation = self.make_room(CHUNK_FRAMES)?;
        let chunk = Chunk::map(source, number, generation, reservation, &self.counters)?;
        if !chunk.covers(offset) {
            return Err(AccessError::Hole { address: number * CHUNK_SIZE + offset });
        }
        let (chunk, unneeded) = self.table().insert(Arc::new(chunk), offset);
        drop(unneeded);
        Ok(chunk)
    }

    /// The ways to granted pages, and room in the budget for `pages` of them.
    pub(crate) fn grants(&self, pages: u64) -> Result<(&Arc<Grants>, Reservation), AccessError> {
        let grants = self.grants.as_ref().ok_or(AccessError::NoGrantSource { reference: 0 })?;
        Ok((grants, self.make_room(pages).inspect_err(|error| self.note(error))?))
    }

    /// Room in the budget, made by evicting if need be.
    fn make_room(&self, pages: u64) -> Result<Reservation, AccessError> {
        loop {
            if let Some(reservation) = self.account.reserve(pages) {
                return Ok(reservation);
            }
            if !self.evict() {
                return Err(AccessError::Busy);
            }
        }
    }

    /// Drops what can be dropped; whether that was anything.
    fn evict(&self) -> bool {
        let Evicted { chunks, fresh } = self.table().evict(self.kept, self.generation());
        self.counters.add(Counter::Evictions, fresh as u64);
        !chunks.is_empty()
    }

    fn note(&self, error: &AccessError) {
        if matches!(error, AccessError::Busy) {
            self.counters.add(Counter::Busy, 1);
            self.signals.pressure.fetch_add(1, Relaxed);
        }
    }

    /// A lane that panicked left no half-made change behind: each is one call of the table.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
