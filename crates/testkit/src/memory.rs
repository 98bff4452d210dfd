//! A guest's memory as Xen's foreign mappings show it: a table of frames, some of them holes, that changes under us.
//!
//! A mapping keeps the pages it was made of, whatever the guest does to the frames since, as a real one does by its
//! page references. Pages that are mapped but no longer the guest's are counted: memory that Xen did not get back.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use guest_memory::{Access, MapError, Mapping, PAGE_SIZE, PageSource};
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

use crate::pages::{Area, PAGE_LEN, Pages};

/// Pages that the guest can be given over a test's life, beyond those it starts with.
const SPARE_PAGES: u64 = 1 << 20;

/// A guest's memory, reached as from another domain. Clones are the same memory.
#[derive(Clone)]
pub struct FakeForeignMemory(Arc<Guest>);

struct Guest {
    pages: Pages,
    state: Mutex<State>,
}

struct State {
    /// Guest frame to page; what is not in here is a hole.
    frames: HashMap<u64, u64>,
    /// How many mappings show a page.
    references: HashMap<u64, u64>,
    next_page: u64,
    counts: Counts,
    failure: Option<(u64, Failure)>,
}

/// What was mapped, and is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Calls of `PageSource::map`, failed ones too.
    pub calls: u64,
    /// Mappings that exist.
    pub live: u64,
    /// Pages that they show.
    pub pages: u64,
    /// Pages among these that are not the guest's any more.
    pub orphans: u64,
}

/// How a mapping call is made to fail.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The host is out of resources.
    Busy,
    /// The call returns this errno.
    Errno(i32),
    /// None of the frames is memory, this time.
    Holes,
}

impl FakeForeignMemory {
    /// A guest with zeroed memory in these banks: guest address and length in bytes, in whole pages.
    pub fn new(banks: &[(u64, u64)]) -> Self {
        let frames: HashMap<u64, u64> =
            banks.iter().flat_map(|&(start, len)| start / PAGE_SIZE..(start + len) / PAGE_SIZE).zip(0..).collect();
        let next_page = frames.len() as u64;
        let (references, counts, failure) = (HashMap::new(), Counts::default(), None);
        let state = Mutex::new(State { frames, references, next_page, counts, failure });
        Self(Arc::new(Guest { pages: Pages::new(next_page + SPARE_PAGES), state }))
    }

    /// The guest gives up the pages from `address` on. An INVALIDATE would follow.
    pub fn balloon_out(&self, address: u64, pages: u64) {
        let mut state = self.state();
        for frame in frames_from(address, pages) {
            state.frames.remove(&frame);
        }
    }

    /// The guest gets zeroed pages there, in place of those it may have. Xen announces nothing.
    pub fn balloon_in(&self, address: u64, pages: u64) {
        for frame in frames_from(address, pages) {
            self.replace(frame * PAGE_SIZE, &[]);
        }
    }

    /// Puts another page in the place of the one at `address`: `contents`, then zeros.
    pub fn replace(&self, address: u64, contents: &[u8]) {
        let mut state = self.state();
        let page = state.next_page;
        assert!(page < self.0.pages.count, "the fake guest is out of spare pages");
        state.next_page += 1;
        self.0.pages.slice(page * PAGE_SIZE, contents.len()).copy_from(contents);
        state.frames.insert(address / PAGE_SIZE, page);
    }

    /// Makes the `nth` mapping call from now on fail; 1 is the next one.
    pub fn fail_map(&self, nth: u64, failure: Failure) {
        assert!(nth > 0, "calls are counted from 1");
        let mut state = self.state();
        state.failure = Some((state.counts.calls + nth, failure));
    }

    /// What was mapped, and is.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        let owned: HashSet<_> = state.frames.values().collect();
        let orphans = state.references.keys().filter(|page| !owned.contains(page)).count() as u64;
        Counts { orphans, ..state.counts }
    }

    /// Reads as the guest's own CPU does. Panics at a hole.
    pub fn read(&self, address: u64, to: &mut [u8]) {
        let mut at = address;
        for part in split(address, to.len()) {
            let start = usize::try_from(at - address).expect("within the buffer");
            let to = to.get_mut(start..start + part).expect("the parts make up the buffer");
            self.slice(at, part).copy_to(to);
            at += part as u64;
        }
    }

    /// Writes as the guest's own CPU does. Panics at a hole.
    pub fn write(&self, address: u64, from: &[u8]) {
        let mut rest = from;
        let mut at = address;
        for part in split(address, from.len()) {
            let (head, tail) = rest.split_at(part);
            self.slice(at, part).copy_from(head);
            rest = tail;
            at += part as u64;
        }
    }

    /// An aligned atomic load by the guest's CPU, with acquire order.
    pub fn load<T: AtomicAccess>(&self, address: u64) -> T {
        self.slice(address, size_of::<T>()).load(0, Ordering::Acquire).expect("aligned")
    }

    /// An aligned atomic store by the guest's CPU, with release order.
    pub fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        self.slice(address, size_of::<T>()).store(value, 0, Ordering::Release).expect("aligned");
    }

    /// `len` bytes as the guest's CPU sees them. Panics if they are not memory, or if ballooning has scattered them.
    pub fn slice(&self, address: u64, len: usize) -> VolatileSlice<'_> {
        let state = self.state();
        let pages = (address % PAGE_SIZE + len as u64).div_ceil(PAGE_SIZE);
        let page = |frame| *state.frames.get(&frame).unwrap_or_else(|| hole(frame));
        let first = page(address / PAGE_SIZE);
        for (frame, expected) in frames_from(address, pages).zip(first..) {
            assert_eq!(page(frame), expected, "the frames at {address:#x} are no longer neighbours");
        }
        self.0.pages.slice(first * PAGE_SIZE + address % PAGE_SIZE, len)
    }

    /// Whether there is memory at each of `frames`.
    pub(crate) fn has(&self, frames: &[u64]) -> bool {
        let state = self.state();
        frames.iter().all(|frame| state.frames.contains_key(frame))
    }

    /// Maps the pages that are at `frames` now, all of them memory, beside what a `PageSource` maps.
    pub(crate) fn show(&self, frames: &[u64], access: Access) -> io::Result<Area> {
        let state = self.state();
        let pages: Vec<u64> =
            frames.iter().map(|frame| *state.frames.get(frame).unwrap_or_else(|| hole(*frame))).collect();
        drop(state);
        self.0.pages.map(&pages, access)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }
}

/// The file that the guest's pages are in, to share them with another process: those of the banks that the guest
/// started with, one behind the other in the order that they were given in.
impl AsFd for FakeForeignMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.pages.file.as_fd()
    }
}

impl PageSource for FakeForeignMemory {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let mut state = self.state();
        state.counts.calls += 1;
        if let Some(failure) = state.due_failure() {
            return Err(failure.error());
        }
        let found: Vec<Option<u64>> = frames.iter().map(|frame| state.frames.get(frame).copied()).collect();
        let holes = found.iter().enumerate().fold(0, |mask, (i, page)| mask | u64::from(page.is_none()) << i);
        if holes != 0 {
            return Err(MapError::Holes(holes));
        }
        let pages: Vec<u64> = found.into_iter().flatten().collect();
        let area = self.0.pages.map(&pages, Access::Write).map_err(MapError::Host)?;
        state.counts.live += 1;
        state.counts.pages += pages.len() as u64;
        for &page in &pages {
            *state.references.entry(page).or_default() += 1;
        }
        drop(state);
        Ok(Box::new(ForeignMapping { guest: self.0.clone(), pages, area }))
    }
}

impl Guest {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn due_failure(&mut self) -> Option<Failure> {
        let calls = self.counts.calls;
        self.failure.take_if(|(due, _)| *due == calls).map(|(_, failure)| failure)
    }
}

impl Failure {
    fn error(self) -> MapError {
        match self {
            Self::Busy => MapError::Busy,
            Self::Errno(errno) => MapError::Host(io::Error::from_raw_os_error(errno)),
            Self::Holes => MapError::Holes(u64::MAX),
        }
    }
}

struct ForeignMapping {
    guest: Arc<Guest>,
    pages: Vec<u64>,
    area: Area,
}

impl Mapping for ForeignMapping {
    fn memory(&self) -> VolatileSlice<'_> {
        self.area.memory()
    }
}

impl Drop for ForeignMapping {
    fn drop(&mut self) {
        let mut state = self.guest.state();
        state.counts.live -= 1;
        state.counts.pages -= self.pages.len() as u64;
        for page in &self.pages {
            let references = state.references.get_mut(page).expect("counted when mapped");
            *references -= 1;
            if *references == 0 {
                state.references.remove(page);
            }
        }
    }
}

fn frames_from(address: u64, pages: u64) -> std::ops::Range<u64> {
    address / PAGE_SIZE..address / PAGE_SIZE + pages
}

/// The lengths of the pieces that page boundaries cut a range into.
fn split(address: u64, len: usize) -> impl Iterator<Item = usize> {
    let mut offset = usize::try_from(address % PAGE_SIZE).unwrap_or_default();
    let mut left = len;
    std::iter::from_fn(move || {
        let part = left.min(PAGE_LEN - offset);
        offset = 0;
        left -= part;
        (part > 0).then_some(part)
    })
}

#[expect(clippy::panic, reason = "a test reports by panicking")]
fn hole(frame: u64) -> ! {
    panic!("the guest has no memory at {:#x}", frame * PAGE_SIZE)
}
