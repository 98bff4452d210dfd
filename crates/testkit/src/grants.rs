//! A guest's grant table (Xen, public/grant_table.h): which of its pages a device may reach, for what, and since when no
//! more.
//!
//! References are never used twice, so who comes too late finds nothing. What is granted for reading is mapped for
//! reading: a device that writes there is killed. A page that is taken back while it is mapped is an error, as for
//! Linux, which then never uses the page again and calls the device broken.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use guest_memory::{Access, GrantCopy, GrantError, GrantSource, Mapping, PAGE_SIZE};
use vm_memory::VolatileSlice;

use crate::{memory::FakeForeignMemory, pages::Area};

/// Set in an address that names a granted page (Linux, drivers/xen/grant-dma-ops.c).
pub const GRANT: u64 = 1 << 63;

/// References below are Xen's own (`GNTTAB_NR_RESERVED_ENTRIES`).
const FIRST_REFERENCE: u32 = 8;

/// The grant table of a guest: its own side, and the one of the domain that the pages are granted to. Clones are the
/// same table.
#[derive(Clone)]
pub struct FakeGrants(Arc<Table>);

struct Table {
    memory: FakeForeignMemory,
    state: Mutex<State>,
}

struct State {
    /// By reference.
    entries: HashMap<u32, Entry>,
    next: u32,
    counts: GrantCounts,
    failure: Option<(u64, GrantFailure)>,
    /// What was unmapped late, and is still in use for Xen; `None` while nothing is late.
    late: Option<Vec<u32>>,
}

struct Entry {
    frame: u64,
    access: Access,
    /// To us, or to a third domain.
    to_us: bool,
    /// Mappings that show it.
    mapped: u64,
    /// The guest wants nobody to reach it any more.
    revoked: bool,
}

/// What was reached by grants, and is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GrantCounts {
    /// Calls of `GrantSource::map`, failed ones too.
    pub maps: u64,
    /// Calls of `GrantSource::copy`, failed ones too.
    pub copies: u64,
    /// Pieces that they were to copy.
    pub pieces: u64,
    /// Mappings that exist.
    pub live: u64,
    /// Granted pages that are mapped, counted as often as they are.
    pub pages: u64,
    /// Pages that are granted.
    pub granted: u64,
}

/// How a call is made to fail.
#[derive(Clone, Copy, Debug)]
pub enum GrantFailure {
    /// The host is out of resources.
    Busy,
    /// The call returns this errno.
    Errno(i32),
}

/// The device still has a page mapped that the guest wants back.
#[derive(Debug)]
pub struct StillMapped {
    /// The page's reference.
    pub reference: u32,
}

impl FakeGrants {
    /// A guest that has granted nothing yet.
    pub fn new(memory: FakeForeignMemory) -> Self {
        let (entries, next, counts) = (HashMap::new(), FIRST_REFERENCE, GrantCounts::default());
        let state = Mutex::new(State { entries, next, counts, failure: None, late: None });
        Self(Arc::new(Table { memory, state }))
    }

    /// Grants us the pages that the `len` bytes at `address` lie in, with references in a row. Returns the address that
    /// a device finds the bytes by.
    pub fn grant(&self, address: u64, len: usize, access: Access) -> u64 {
        self.add(address, len, access, true)
    }

    /// The same, to a domain that is neither the guest's nor ours.
    pub fn grant_to_another(&self, address: u64, len: usize, access: Access) -> u64 {
        self.add(address, len, access, false)
    }

    fn add(&self, address: u64, len: usize, access: Access, to_us: bool) -> u64 {
        let mut state = self.0.state();
        let first = state.next;
        let frames = address / PAGE_SIZE..(address + len as u64).div_ceil(PAGE_SIZE);
        for frame in frames {
            let reference = state.next;
            state.next += 1;
            state.entries.insert(reference, Entry { frame, access, to_us, mapped: 0, revoked: false });
        }
        GRANT | (u64::from(first) * PAGE_SIZE + address % PAGE_SIZE)
    }

    /// Takes back what [`grant`](Self::grant) gave out at `granted`, as a driver that is done with its buffer.
    ///
    /// # Errors
    /// The device is not done with it. Nobody can map it again all the same.
    pub fn end_access(&self, granted: u64, len: usize) -> Result<(), StillMapped> {
        let mut state = self.0.state();
        let mut outcome = Ok(());
        for reference in references(granted, len) {
            let entry = state.entries.get_mut(&reference).expect("granted before");
            entry.revoked = true;
            if entry.mapped > 0 && outcome.is_ok() {
                outcome = Err(StillMapped { reference });
            }
        }
        outcome
    }

    /// Clears the entries of the table without a look at whether they are in use, as only a hostile guest does. What is
    /// mapped stays so.
    pub fn revoke(&self, granted: u64, len: usize) {
        let mut state = self.0.state();
        for reference in references(granted, len) {
            state.entries.get_mut(&reference).expect("granted before").revoked = true;
        }
    }

    /// Makes the `nth` call, of map or copy, from now on fail; 1 is the next one.
    pub fn fail_call(&self, nth: u64, failure: GrantFailure) {
        assert!(nth > 0, "calls are counted from 1");
        let mut state = self.0.state();
        state.failure = Some((state.counts.calls() + nth, failure));
    }

    /// Mappings that are dropped from now on stay in use for Xen: its unmap call fails, or the kernel puts it off while
    /// someone has the pages pinned.
    pub fn put_off_unmaps(&self) {
        self.0.state().late.get_or_insert_default();
    }

    /// Ends what [`put_off_unmaps`](Self::put_off_unmaps) began, and unmaps what was put off.
    pub fn finish_unmaps(&self) {
        let mut state = self.0.state();
        for reference in state.late.take().unwrap_or_default() {
            state.unmap(reference);
        }
    }

    /// What was reached, and is.
    pub fn counts(&self) -> GrantCounts {
        let state = self.0.state();
        let granted = state.entries.values().filter(|entry| !entry.revoked).count() as u64;
        GrantCounts { granted, ..state.counts }
    }
}

impl GrantCounts {
    /// Calls of either kind.
    pub fn calls(&self) -> u64 {
        self.maps + self.copies
    }
}

impl GrantSource for FakeGrants {
    fn map(&self, references: &[u32], access: Access) -> Result<Box<dyn Mapping>, GrantError> {
        let mut state = self.0.state();
        state.counts.maps += 1;
        state.fail_if_due()?;
        let frames: Vec<u64> = references
            .iter()
            .map(|&reference| state.frame(reference, access, &self.0.memory))
            .collect::<Result<_, _>>()?;
        let area = self.0.memory.show(&frames, access).map_err(GrantError::Host)?;
        for reference in references {
            state.entries.get_mut(reference).expect("found before").mapped += 1;
        }
        state.counts.live += 1;
        state.counts.pages += references.len() as u64;
        drop(state);
        Ok(Box::new(GrantedMapping { table: Arc::clone(&self.0), references: references.to_vec(), area }))
    }

    /// As Xen does it: one piece after the other, those behind a refused one too.
    fn copy(&self, pieces: &[GrantCopy<'_>]) -> Result<(), GrantError> {
        let mut state = self.0.state();
        state.counts.copies += 1;
        state.counts.pieces += pieces.len() as u64;
        state.fail_if_due()?;
        let outcomes: Vec<_> = pieces.iter().map(|piece| state.copy(piece, &self.0.memory)).collect();
        outcomes.into_iter().collect()
    }
}

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail_if_due(&mut self) -> Result<(), GrantError> {
        let calls = self.counts.calls();
        match self.failure.take_if(|(due, _)| *due == calls) {
            Some((_, GrantFailure::Busy)) => Err(GrantError::Busy),
            Some((_, GrantFailure::Errno(errno))) => Err(GrantError::Host(io::Error::from_raw_os_error(errno))),
            None => Ok(()),
        }
    }

    /// The frame that we may reach by `reference`.
    fn frame(&self, reference: u32, access: Access, memory: &FakeForeignMemory) -> Result<u64, GrantError> {
        self.entries
            .get(&reference)
            .filter(|entry| entry.to_us && !entry.revoked && (entry.access == Access::Write || access == Access::Read))
            .map(|entry| entry.frame)
            .filter(|&frame| memory.has(&[frame]))
            .ok_or(GrantError::Refused { reference })
    }

    fn copy(&self, piece: &GrantCopy<'_>, memory: &FakeForeignMemory) -> Result<(), GrantError> {
        let GrantCopy { reference, offset, ours, access } = piece;
        assert!(usize::from(*offset) + ours.len() <= 4096, "a piece of grant {reference} passes the end of its page");
        let frame = self.frame(*reference, *access, memory)?;
        let granted = memory.slice(frame * PAGE_SIZE + u64::from(*offset), ours.len());
        match access {
            Access::Read => granted.copy_to_volatile_slice(*ours),
            Access::Write => ours.copy_to_volatile_slice(granted),
        }
        Ok(())
    }

    fn unmap(&mut self, reference: u32) {
        self.entries.get_mut(&reference).expect("mapped before").mapped -= 1;
        self.counts.pages -= 1;
    }
}

struct GrantedMapping {
    table: Arc<Table>,
    references: Vec<u32>,
    area: Area,
}

impl Mapping for GrantedMapping {
    fn memory(&self) -> VolatileSlice<'_> {
        self.area.memory()
    }
}

impl Drop for GrantedMapping {
    fn drop(&mut self) {
        let mut state = self.table.state();
        state.counts.live -= 1;
        for &reference in &self.references {
            match &mut state.late {
                Some(late) => late.push(reference),
                None => state.unmap(reference),
            }
        }
    }
}

/// The references of the pages that `len` bytes at `granted` lie in.
fn references(granted: u64, len: usize) -> impl Iterator<Item = u32> {
    let start = granted & !GRANT;
    let pages = start / PAGE_SIZE..(start + len as u64).div_ceil(PAGE_SIZE);
    pages.map(|page| u32::try_from(page).expect("a reference"))
}
