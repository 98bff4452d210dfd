//! One lane's way to guest memory: `vm_memory::GuestMemory` for rings and headers, pins for what requests carry.

use std::{
    cell::{Cell, RefCell},
    iter::FusedIterator,
    sync::Arc,
};

use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, Permissions, VolatileMemory, VolatileSlice,
    guest_memory::{GuestMemorySliceIterator, Result as GuestMemoryResult},
};

use crate::{
    Access, AccessError, Buffers, CHUNK_SIZE, GrantCopy, MapCache, PAGE_SIZE, Route,
    granted::Granted,
    grants::{GrantedPages, is_grant},
    layout::{Layout, Place},
    look_aside::{LookAside, PLACES},
    no_backend::NoBackend,
    scratch::Scratch,
};

/// A view hands its hits to the cache's statistics when it has this many, and when it is flushed.
const HITS_AT_ONCE: u64 = 256;

/// A lane's private look-aside over the guest's map cache. `Send`, not `Sync`.
///
/// A look-up that hits costs no lock and no reference count. It compares the generation each time, so from the moment
/// [`MapCache::invalidate`] returns no look-up goes through an old mapping; slices handed out before may.
pub struct View {
    cache: Arc<MapCache>,
    look_aside: LookAside,
    granted: Granted,
    /// Hits not yet handed to the cache: counting them where all lanes count would cost more than the look-up.
    hits: Cell<u64>,
    /// Bytes that one buffer may have.
    largest_buffer: u64,
    failure: RefCell<Option<AccessError>>,
    /// The cache's generation and pressure when this view last adapted to them.
    generation: u64,
    pressure: u64,
}

impl View {
    /// Bytes of guest memory that a view may keep mapped between requests.
    pub const REACH: u64 = PLACES as u64 * CHUNK_SIZE;

    /// A view that has looked at nothing yet.
    pub fn new(cache: Arc<MapCache>) -> Self {
        let (generation, pressure) = (cache.generation(), cache.pressure());
        let (look_aside, granted, hits, failure) =
            (LookAside::new(), Granted::default(), Cell::new(0), RefCell::new(None));
        let largest_buffer = cache.largest_buffer();
        Self { cache, look_aside, granted, hits, largest_buffer, failure, generation, pressure }
    }

    /// The cache behind it.
    pub fn cache(&self) -> &Arc<MapCache> {
        &self.cache
    }

    /// Lets go of what is displaced, stale, or wanted by other lanes. Call it before each pop: costs next to nothing
    /// when there is nothing to do, and bounds what one pass can hold.
    #[inline]
    pub fn quiesce(&mut self) {
        self.look_aside.forget_displaced(self.cache.now());
        if self.pressure != self.cache.pressure() {
            self.flush();
        } else if self.generation != self.cache.generation() {
            self.generation = self.cache.generation();
            self.look_aside.forget_stale(self.generation);
        }
        if self.hits.get() >= HITS_AT_ONCE {
            self.cache.count_hits(self.hits.take());
        }
    }

    /// Lets go of everything: for a lane that goes to sleep after an invalidation, so that the guest gets the pages
    /// back that it gave up, and for a queue that stops.
    pub fn flush(&mut self) {
        self.look_aside.clear();
        self.generation = self.cache.generation();
        self.pressure = self.cache.pressure();
        self.cache.count_hits(self.hits.take());
    }

    /// The first failure since the last call, for callers of libraries that swallow errors: `virtio-queue` ends a
    /// descriptor chain silently, even if the cause is only [`AccessError::Busy`].
    pub fn take_failure(&self) -> Option<AccessError> {
        self.failure.take()
    }

    /// What is at `address`: the short way for what lies in one place and is remembered, as nearly everything of a ring
    /// does; for the rest, that of [`Bytes`].
    ///
    /// # Errors
    /// As [`Bytes::read_obj`].
    #[inline]
    pub fn get<T: ByteValued>(&self, address: u64) -> GuestMemoryResult<T> {
        match self.together(address, size_of::<T>()) {
            Some(memory) => Ok(memory.get_ref::<T>(0)?.load()),
            None => self.read_obj(GuestAddress(address)),
        }
    }

    /// Puts `value` to `address`, as [`get`](Self::get) gets it.
    ///
    /// # Errors
    /// As [`Bytes::write_obj`].
    #[inline]
    pub fn put<T: ByteValued>(&self, address: u64, value: T) -> GuestMemoryResult<()> {
        match self.together(address, size_of::<T>()) {
            Some(memory) => memory.get_ref::<T>(0)?.store(value),
            None => self.write_obj(value, GuestAddress(address))?,
        }
        Ok(())
    }

    /// The `len` bytes of a frame at `address`, if they lie together and are remembered.
    #[inline]
    fn together(&self, address: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let memory = self.look_aside.find(address, len, self.cache.generation())?;
        (memory.len() == len).then(|| self.hit(memory))
    }

    /// Keeps the `len` bytes at `address` mapped as long as the view lives, if they are granted: rings, which a driver
    /// grants once. What is not kept and not [copied](Self::copy_tables) cannot be read by its address then.
    ///
    /// # Errors
    /// They cannot be reached. Whether there are frames at all where they are to be is left to the first access.
    pub fn keep(&mut self, address: GuestAddress, len: usize) -> Result<(), AccessError> {
        if is_grant(address.0) && self.cache.reaches_grants() {
            self.check_bounds(address.0, len)?;
            return self.granted.keep(&self.cache, address.0, len);
        }
        if self.cache.reaches_frames() { Ok(()) } else { Err(AccessError::GrantsOnly { address: address.0 }) }
    }

    /// Copies granted areas in one call, so that they can be read by their addresses until the next call of this. Those
    /// of frames are left out; they can be read anyway.
    ///
    /// Bound their lengths before.
    pub fn copy_tables(&mut self, areas: &[(GuestAddress, usize)]) -> Result<(), AccessError> {
        areas.iter().try_for_each(|&(GuestAddress(address), len)| self.check_bounds(address, len))?;
        self.granted.copy(&self.cache, areas)
    }

    /// Appends the memory at these guest addresses, with these lengths, to `buffers`. What of it is granted has yet to be
    /// [copied](Self::copy_in).
    ///
    /// Bound the length of a request before: this maps whatever the budget allows.
    ///
    /// # Errors
    /// Some of it cannot be reached. `buffers` has nothing then.
    pub fn pin(
        &self,
        pieces: &[(GuestAddress, usize)],
        access: Access,
        buffers: &mut Buffers,
    ) -> Result<(), AccessError> {
        let pinned = if self.cache.reaches_grants() {
            self.pin_any(pieces, access, buffers)
        } else {
            pieces.iter().try_for_each(|&(GuestAddress(address), len)| self.pin_each(address, len, buffers))
        };
        // Some of it may lie in memory that is not kept.
        pinned.inspect_err(|_| buffers.clear())
    }

    /// Copies from the guest what of these requests' memory is copied at all, in one call.
    pub fn copy_in<'a>(&self, requests: impl IntoIterator<Item = &'a Buffers>) -> Result<(), AccessError> {
        let mut copies = Vec::new();
        requests.into_iter().filter_map(Buffers::copies).try_for_each(|pieces| pieces.inward(&mut copies))?;
        self.copy(&copies)
    }

    /// Copies to the guest what of these requests' memory [has to be](Buffers::is_to_be_stored), in one call: of each
    /// the first bytes, as many as the number says, which system calls may have written, and what else was written.
    pub fn copy_out<'a>(&self, requests: impl IntoIterator<Item = (&'a Buffers, usize)>) -> Result<(), AccessError> {
        let mut copies = Vec::new();
        let mut copied = requests.into_iter().filter_map(|(buffers, written)| Some((buffers.copies()?, written)));
        copied.try_for_each(|(pieces, written)| pieces.outward(written, &mut copies))?;
        self.copy(&copies)
    }

    fn copy(&self, copies: &[GrantCopy<'_>]) -> Result<(), AccessError> {
        if copies.is_empty() { Ok(()) } else { self.cache.grants(0)?.0.copy(copies) }
    }

    /// Pins pieces of which some are granted: those to be mapped in one call, those to be copied in one memory.
    fn pin_any(
        &self,
        pieces: &[(GuestAddress, usize)],
        access: Access,
        buffers: &mut Buffers,
    ) -> Result<(), AccessError> {
        let Layout { places, references, copied } =
            Layout::of(pieces, self.cache.copied_together(), self.largest_buffer)?;
        let scratch = self.scratch(copied)?;
        let pages = self.map(&references, access)?;
        for (&(GuestAddress(address), len), place) in pieces.iter().zip(places) {
            match place {
                Place::Frames => self.pin_each(address, len, buffers)?,
                Place::Copied(at) => {
                    let memory = scratch.as_ref().and_then(|scratch| scratch.memory().subslice(at, len).ok());
                    buffers.push_copied(address, memory.ok_or_else(|| refused(address))?);
                }
                Place::Mapped(at) => {
                    let memory = pages.as_ref().and_then(|pages| pages.memory().subslice(at, len).ok());
                    buffers.push_iovec(memory.ok_or_else(|| refused(address))?);
                }
            }
        }
        scratch.into_iter().for_each(|scratch| buffers.keep_scratch(scratch));
        pages.into_iter().for_each(|pages| buffers.keep_granted(pages, access));
        Ok(())
    }

    /// Memory for `len` bytes of granted pages; none for no byte.
    fn scratch(&self, len: usize) -> Result<Option<Scratch>, AccessError> {
        let pages = (len as u64).div_ceil(PAGE_SIZE);
        (len > 0).then(|| Scratch::new(len, self.cache.grants(pages)?.1)).transpose()
    }

    /// These granted pages, mapped; none for no page.
    fn map(&self, references: &[u32], access: Access) -> Result<Option<GrantedPages>, AccessError> {
        let map = || {
            let (grants, reservation) = self.cache.grants(references.len() as u64)?;
            grants.map(references, access, reservation)
        };
        (!references.is_empty()).then(map).transpose()
    }

    fn pin_each(&self, address: u64, len: usize, buffers: &mut Buffers) -> Result<(), AccessError> {
        self.check_bounds(address, len)?;
        let (mut address, mut left) = (address, len);
        while left > 0 {
            let mut pin = |generation| {
                self.look_aside.find_pinned(address, left, generation, |memory, chunk| {
                    buffers.push(memory, chunk);
                    memory.len()
                })
            };
            let pinned = match pin(self.cache.generation()) {
                Some(pinned) => self.hit(pinned),
                None => pin(self.fill(address)?).ok_or(AccessError::Hole { address })?,
            };
            left -= pinned;
            address = address.wrapping_add(pinned as u64);
        }
        Ok(())
    }

    /// The memory at `address`: `len` bytes, or as many as lie together.
    #[inline]
    fn slice(&self, address: u64, len: usize) -> Result<VolatileSlice<'_>, AccessError> {
        if is_grant(address) && self.cache.reaches_grants() {
            return self.granted.find(address, len).ok_or_else(|| refused(address));
        }
        match self.look_aside.find(address, len, self.cache.generation()) {
            Some(memory) => Ok(self.hit(memory)),
            None => self.slice_slowly(address, len),
        }
    }

    #[cold]
    fn slice_slowly(&self, address: u64, len: usize) -> Result<VolatileSlice<'_>, AccessError> {
        let generation = self.fill(address)?;
        self.look_aside.find(address, len, generation).ok_or(AccessError::Hole { address })
    }

    /// Remembers the chunk of `address`. Returns the generation to find it by: not the latest, because a guest that
    /// invalidates in a loop must not keep this look-up, which started before, from ending.
    fn fill(&self, address: u64) -> Result<u64, AccessError> {
        let chunk = self.cache.chunk(address)?;
        let generation = chunk.generation();
        self.look_aside.remember(address, chunk);
        Ok(generation)
    }

    #[inline]
    fn hit<T>(&self, found: T) -> T {
        self.hits.update(|hits| hits + 1);
        found
    }

    /// Keeps `error` for [`take_failure`](Self::take_failure).
    #[cold]
    fn fail(&self, error: AccessError) -> vm_memory::GuestMemoryError {
        self.failure.borrow_mut().get_or_insert_with(|| error.clone());
        error.into()
    }

    #[inline]
    fn check_bounds(&self, address: u64, len: usize) -> Result<(), AccessError> {
        let limit = self.largest_buffer;
        if len as u64 > limit {
            return Err(AccessError::TooLarge { len, limit });
        }
        match address.checked_add(len as u64) {
            Some(_) => Ok(()),
            None => Err(AccessError::Overflow { address, len }),
        }
    }
}

/// What is neither kept nor copied was not there when the driver offered it.
fn refused(address: u64) -> AccessError {
    match Route::of(address) {
        Route::Grant { reference, .. } => AccessError::Refused { reference },
        Route::Frame { .. } => AccessError::Hole { address },
    }
}

impl GuestMemory for View {
    type PhysicalMemory = NoBackend;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, len: usize, access: Permissions) -> bool {
        self.get_slices(address, len, access).is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    /// What is read and written by its address is mapped readable and writable, so the kind of access makes no difference.
    #[inline]
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        len: usize,
        _access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        match self.check_bounds(address.0, len) {
            Ok(()) => Ok(Slices { view: self, address: address.0, left: len }),
            Err(error) => Err(self.fail(error)),
        }
    }
}

/// The pieces of a range of guest memory.
struct Slices<'a> {
    view: &'a View,
    address: u64,
    left: usize,
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        match self.view.slice(self.address, self.left) {
            Ok(slice) => {
                self.left -= slice.len();
                self.address = self.address.wrapping_add(slice.len() as u64);
                Some(Ok(slice))
            }
            Err(error) => {
                self.left = 0;
                Some(Err(self.view.fail(error)))
            }
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}
