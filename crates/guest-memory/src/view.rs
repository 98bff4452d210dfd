//! One lane's way to guest memory: `vm_memory::GuestMemory` for rings and headers, pins for what requests carry.

use std::{
    cell::{Cell, RefCell},
    iter::FusedIterator,
    sync::Arc,
};

use vm_memory::{
    GuestAddress, GuestMemory, Permissions, VolatileSlice,
    guest_memory::{GuestMemorySliceIterator, Result as GuestMemoryResult},
};

use crate::{
    AccessError, Buffers, CHUNK_SIZE, MapCache,
    look_aside::{LookAside, PLACES},
    no_backend::NoBackend,
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
        let (look_aside, hits, failure) = (LookAside::new(), Cell::new(0), RefCell::new(None));
        let largest_buffer = cache.largest_buffer();
        Self { cache, look_aside, hits, largest_buffer, failure, generation, pressure }
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

    /// Appends the `len` bytes at `address` to `buffers`, all or nothing.
    ///
    /// Bound the length of a request before: this maps whatever the budget allows.
    pub fn pin(&self, address: GuestAddress, len: usize, buffers: &mut Buffers) -> Result<(), AccessError> {
        let mark = buffers.mark();
        self.pin_each(address.0, len, buffers).inspect_err(|_| buffers.revert(mark))
    }

    fn pin_each(&self, address: u64, len: usize, buffers: &mut Buffers) -> Result<(), AccessError> {
        self.check_bounds(address, len)?;
        let (mut address, mut left) = (address, len);
        while left > 0 {
            let pinned = match self.look_aside.find_pinned(address, left, self.cache.generation()) {
                Some(pinned) => self.hit(pinned),
                None => {
                    let generation = self.fill(address)?;
                    self.look_aside.find_pinned(address, left, generation).ok_or(AccessError::Hole { address })?
                }
            };
            buffers.push(&pinned);
            left -= pinned.memory().len();
            address = address.wrapping_add(pinned.memory().len() as u64);
        }
        Ok(())
    }

    /// The memory at `address`: `len` bytes, or as many as lie together.
    #[inline]
    fn slice(&self, address: u64, len: usize) -> Result<VolatileSlice<'_>, AccessError> {
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

impl GuestMemory for View {
    type PhysicalMemory = NoBackend;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, len: usize, access: Permissions) -> bool {
        self.get_slices(address, len, access).is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    /// Foreign pages are mapped readable and writable, so the kind of access makes no difference.
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
