//! A guest's memory that changes, and what lanes see of it through one map cache.
//!
//! The guest gives up pages, gets others, replaces some; each time, Xen says so and the cache forgets. Lanes look at any
//! addresses, keep requests in flight, and let go. The host refuses mappings now and then.
//!
//! - What is read is what the guest has there; a range with a page missing is an error that names the first missing byte.
//! - A request in flight keeps the pages that it was given, whatever becomes of their addresses.
//! - No more is mapped than the budget allows, and what does not fit is refused, not waited for.
//! - At the end nothing is mapped.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::{Access, AccessError, Budget, Buffers, CHUNK_SIZE, MapCache, PAGE_SIZE, View};
use testkit::memory::{Failure, FakeForeignMemory};
use vm_memory::{Bytes, GuestAddress};

const BANK: u64 = 0x4000_0000;
const PAGES: u64 = 80;
const VIEWS: usize = 3;

/// More chunks than this are not mapped at a time; the guest has five.
const BUDGET: Budget = Budget { kept: 2 * CHUNK_SIZE, at_most: 4 * CHUNK_SIZE };

/// Requests that are in flight at a time.
const IN_FLIGHT: usize = 6;

/// Pages that the guest gets over a run: `testkit` has that many to spare, and each costs time.
const CHANGES: u64 = 200;

#[derive(Arbitrary, Debug)]
enum Step {
    GiveUp {
        page: u8,
        count: u8,
    },
    GetBack {
        page: u8,
    },
    Replace {
        page: u8,
        byte: u8,
    },
    GuestWrites {
        at: At,
        byte: u8,
    },
    Look {
        view: u8,
        at: At,
        len: Len,
    },
    Write {
        view: u8,
        at: At,
        len: Len,
        byte: u8,
    },
    Pin {
        view: u8,
        at: At,
        len: Len,
    },
    /// A request writes, and what it wrote is compared with what it reads.
    UsePinned {
        which: u8,
        byte: u8,
    },
    Unpin {
        which: u8,
    },
    Quiesce {
        view: u8,
    },
    Flush {
        view: u8,
    },
    Sweep,
    Fail {
        nth: u8,
        how: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum At {
    Page {
        page: u8,
        offset: u16,
    },
    /// Around both ends of memory.
    Edge(u16),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Len {
    Bytes(u8),
    Pages(u8),
    Any(u32),
}

impl At {
    fn number(self) -> u64 {
        match self {
            Self::Page { page, offset } => BANK + u64::from(page) % PAGES * PAGE_SIZE + u64::from(offset) % PAGE_SIZE,
            Self::Edge(at) if at & 1 == 0 => BANK - 0x4000 + u64::from(at) / 4,
            Self::Edge(at) => BANK + PAGES * PAGE_SIZE - 0x2000 + u64::from(at) / 4,
            Self::Any(at) => at,
        }
    }
}

impl Len {
    fn number(self) -> usize {
        match self {
            Self::Bytes(len) => len.into(),
            Self::Pages(pages) => usize::from(pages % 48) * PAGE_SIZE as usize,
            Self::Any(len) => len as usize % (4 << 20),
        }
    }
}

/// A request in flight: where it was pinned, and which pages it got.
struct Pinned {
    buffers: Buffers,
    at: u64,
    pages: Vec<u64>,
}

struct Machine {
    guest: FakeForeignMemory,
    cache: Arc<MapCache>,
    views: Vec<View>,
    in_flight: Vec<Pinned>,
    /// By page of the bank: which page it is of all that there ever were, counted from 0.
    pages: BTreeMap<u64, u64>,
    /// What is in each page there ever was.
    contents: Vec<Vec<u8>>,
    changes: u64,
    /// Mappings may fail: an error is no news.
    shaky: bool,
}

/// Changes memory and looks at it as `bytes` say.
///
/// # Panics
/// Something was seen that is not there, or something is left.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let mut machine = Machine::new();
    while !source.is_empty() {
        let Ok(step) = Step::arbitrary(&mut source) else { break };
        machine.make(step);
        let mapped = machine.cache.stats().bytes_mapped;
        assert!(mapped <= BUDGET.at_most, "{mapped} bytes are mapped");
    }
    machine.end();
}

impl Machine {
    fn new() -> Self {
        let guest = FakeForeignMemory::new(&[(BANK, PAGES * PAGE_SIZE)]);
        let cache = MapCache::new(guest.clone(), BUDGET);
        let views = (0..VIEWS).map(|_| View::new(Arc::clone(&cache))).collect();
        let pages = (0..PAGES).map(|page| (page, page)).collect();
        let contents = vec![vec![0; PAGE_SIZE as usize]; PAGES as usize];
        Self { guest, cache, views, in_flight: Vec::new(), pages, contents, changes: 0, shaky: false }
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::GiveUp { page, count } => {
                for page in (u64::from(page)..).take((count % 20).into()).map(|page| page % PAGES) {
                    self.guest.balloon_out(BANK + page * PAGE_SIZE, 1);
                    self.pages.remove(&page);
                }
                self.cache.invalidate();
            }
            // What was not there needs no invalidation.
            Step::GetBack { page } if !self.pages.contains_key(&(u64::from(page) % PAGES)) => self.replace(page, 0),
            Step::GetBack { .. } => {}
            Step::Replace { page, byte } => {
                self.replace(page, byte);
                self.cache.invalidate();
            }
            Step::GuestWrites { at, byte } => {
                let at = at.number();
                if self.first_hole(at, 1).is_none() {
                    self.guest.write(at, &[byte]);
                    self.set(at, &[byte]);
                }
            }
            Step::Look { view, at, len } => self.look(view, at.number(), len.number() % 0x3000),
            Step::Write { view, at, len, byte } => self.write(view, at.number(), len.number() % 0x3000, byte),
            Step::Pin { view, at, len } => self.pin(view, at.number(), len.number()),
            Step::UsePinned { which, byte } => self.use_pinned(which, byte),
            Step::Unpin { which } => {
                if !self.in_flight.is_empty() {
                    let which = usize::from(which) % self.in_flight.len();
                    self.in_flight.swap_remove(which);
                }
            }
            Step::Quiesce { view } => self.view(view).quiesce(),
            Step::Flush { view } => self.view(view).flush(),
            Step::Sweep => self.cache.sweep(),
            Step::Fail { nth, how } => {
                let failure = match how % 3 {
                    0 => Failure::Busy,
                    1 => Failure::Errno(12),
                    _ => Failure::Holes,
                };
                self.guest.fail_map(u64::from(nth % 4) + 1, failure);
                self.shaky = true;
            }
        }
    }

    fn view(&mut self, view: u8) -> &mut View {
        &mut self.views[usize::from(view) % VIEWS]
    }

    fn replace(&mut self, page: u8, byte: u8) {
        if self.changes == CHANGES {
            return;
        }
        self.changes += 1;
        let page = u64::from(page) % PAGES;
        self.guest.replace(BANK + page * PAGE_SIZE, &[byte; 64]);
        let mut contents = vec![0; PAGE_SIZE as usize];
        contents[..64].fill(byte);
        self.pages.insert(page, self.contents.len() as u64);
        self.contents.push(contents);
    }

    fn look(&mut self, view: u8, at: u64, len: usize) {
        let mut bytes = vec![0x55; len];
        let outcome = self.view(view).read_slice(&mut bytes, GuestAddress(at));
        let failure = self.view(view).take_failure();
        self.judge(at, len, outcome.is_ok(), failure);
        if outcome.is_ok() {
            assert!(bytes == self.get(at, len), "{len} bytes at {at:#x} are not what the guest has there");
        }
    }

    fn write(&mut self, view: u8, at: u64, len: usize, byte: u8) {
        let outcome = self.view(view).write_slice(&vec![byte; len], GuestAddress(at));
        let failure = self.view(view).take_failure();
        self.judge(at, len, outcome.is_ok(), failure);
        // One that failed may have written up to where it did.
        let reached = if outcome.is_ok() { len } else { self.written_part(at, len, byte) };
        self.set(at, &vec![byte; reached]);
        if reached > 0 {
            let mut seen = vec![0; reached];
            self.guest.read(at, &mut seen);
            assert!(seen == vec![byte; reached], "the guest does not see what was written");
        }
    }

    /// How many bytes from `at` on the guest sees that a failed write has left, before a hole.
    fn written_part(&self, at: u64, len: usize, byte: u8) -> usize {
        let most = self.first_hole(at, len).map_or(len, |hole| (hole - at) as usize);
        let mut seen = vec![0; most];
        self.guest.read(at, &mut seen);
        let expected = self.get(at, most);
        let changed = (0..most).rev().find(|nth| seen[*nth] != expected[*nth]);
        let reached = changed.map_or(0, |last| last + 1);
        assert!(seen[..reached].iter().all(|seen| *seen == byte));
        reached
    }

    fn pin(&mut self, view: u8, at: u64, len: usize) {
        if self.in_flight.len() == IN_FLIGHT {
            return;
        }
        let mut buffers = Buffers::new();
        let outcome = self.view(view).pin(&[(GuestAddress(at), len)], Access::Write, &mut buffers);
        self.judge(at, len, outcome.is_ok(), outcome.clone().err());
        if outcome.is_err() {
            assert_eq!(buffers.len(), 0, "a part of what cannot be had is kept");
            return;
        }
        assert_eq!(buffers.len(), len);
        let pages = pages_of(at, len).map(|page| self.pages[&page]).collect();
        self.in_flight.push(Pinned { buffers, at, pages });
    }

    fn use_pinned(&mut self, which: u8, byte: u8) {
        let count = self.in_flight.len().max(1);
        let Some(Pinned { buffers, at, pages }) = self.in_flight.get(usize::from(which) % count) else { return };
        let len = buffers.len();
        if len == 0 {
            return;
        }
        let first = (at % PAGE_SIZE) as usize;
        let mut all: Vec<u8> = pages.iter().flat_map(|page| &self.contents[*page as usize]).copied().collect();
        let mut bytes = vec![0; len];
        assert_eq!(buffers.read(0, &mut bytes), len);
        assert!(bytes == all[first..first + len], "a request's pages are others than it was given");
        assert_eq!(buffers.fill(len / 3, len / 3, byte), len / 3);
        all[first + len / 3..][..len / 3].fill(byte);
        for (page, now) in pages.iter().zip(all.chunks(PAGE_SIZE as usize)) {
            self.contents[*page as usize].copy_from_slice(now);
        }
    }

    /// What a look-up may come to.
    fn judge(&self, at: u64, len: usize, is_done: bool, failure: Option<AccessError>) {
        let hole = self.first_hole(at, len);
        assert!(!is_done || hole.is_none(), "{len} bytes at {at:#x} are not all memory, and were reached");
        match failure {
            None => assert!(is_done),
            Some(AccessError::Hole { address }) => {
                assert!(hole == Some(address) || self.shaky, "{address:#x} is called a hole, and {hole:x?} is one");
            }
            Some(AccessError::Busy) => assert!(!self.in_flight.is_empty() || self.shaky || self.is_wide(len)),
            Some(AccessError::Host(_)) => assert!(self.shaky, "the host did not fail"),
            Some(AccessError::TooLarge { len: refused, limit }) => assert!(refused == len && limit < len as u64),
            Some(_) => assert!(hole.is_some(), "{len} bytes at {at:#x} are memory, and were refused"),
        }
    }

    /// Whether the budget alone may be in the way: what other views remember counts, too.
    fn is_wide(&self, len: usize) -> bool {
        len as u64 + VIEWS as u64 * View::REACH > BUDGET.at_most - CHUNK_SIZE
    }

    /// The first byte of a range that is not memory.
    fn first_hole(&self, at: u64, len: usize) -> Option<u64> {
        if len == 0 {
            return None;
        }
        let end = at.saturating_add(len as u64);
        let is_missing = |page: &u64| match (page * PAGE_SIZE).checked_sub(BANK) {
            Some(offset) => !self.pages.contains_key(&(offset / PAGE_SIZE)),
            None => true,
        };
        let page = (at / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).find(is_missing)?;
        Some((page * PAGE_SIZE).max(at))
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| {
            let (page, offset) = ((at - BANK) / PAGE_SIZE, (at - BANK) % PAGE_SIZE);
            self.contents[self.pages[&page] as usize][offset as usize]
        };
        (at..at + len as u64).map(byte).collect()
    }

    fn set(&mut self, at: u64, bytes: &[u8]) {
        // In this order nothing is counted beyond the last address.
        for (byte, at) in bytes.iter().zip(at..) {
            let (page, offset) = ((at - BANK) / PAGE_SIZE, (at - BANK) % PAGE_SIZE);
            self.contents[self.pages[&page] as usize][offset as usize] = *byte;
        }
    }

    /// When lanes are idle after an invalidation, the guest has back what it gave up; when they are gone, everything.
    fn end(mut self) {
        self.in_flight.clear();
        self.cache.invalidate();
        self.views.iter_mut().for_each(View::flush);
        self.cache.sweep();
        assert_eq!(self.guest.counts().live, 0, "mappings are left that nobody uses");
        assert_eq!(self.cache.stats().bytes_mapped, 0);
    }
}

/// The pages of the bank that a range of memory touches.
fn pages_of(at: u64, len: usize) -> std::ops::Range<u64> {
    let page = |at: u64| at.saturating_sub(BANK) / PAGE_SIZE;
    if len == 0 { 0..0 } else { page(at)..page(at + len as u64 - 1) + 1 }
}
