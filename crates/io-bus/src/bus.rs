//! The table of windows, and the way an access takes through it.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::sync::{AtomicU64, AtomicUsize, Mutex, RwLock, RwLockWriteGuard};
use crate::{Completer, Deferral, Space, Window, defer};

/// What answers in a window.
///
/// Offsets count from the window's start, and `data` lies wholly in it; its length is what the
/// guest chose (1, 2, 4 or 8 bytes from real hardware), its bytes are little-endian. Accesses may
/// come from several threads at a time.
pub trait Device: Send + Sync {
    /// Fills `data` with what a read of these bytes gives.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a write of these bytes, and says when it counts as done.
    fn write(&self, offset: u64, data: &[u8]) -> Written;
}

/// When a write counts as done, and the one who made it may go on.
#[derive(Debug)]
#[must_use = "a later answer must be waited for"]
pub enum Written {
    /// It is done.
    Now,
    /// It is done when the deferral is complete.
    Later(Deferral),
}

/// Windows of all spaces, and what answers in each.
#[derive(Default)]
pub struct Bus {
    windows: RwLock<Windows>,
    /// How many windows await their device.
    awaited: AtomicUsize,
    unclaimed: AtomicU64,
}

/// By space and first address; no two windows of a space overlap. A list, as it is searched at each access, changes
/// hardly ever, and has some tens of entries.
type Windows = Vec<Entry>;

struct Entry {
    window: Window,
    occupant: Occupant,
}

enum Occupant {
    Device(Arc<dyn Device>),
    /// The device is still to come; these are the accesses that wait for it.
    Awaited(Mutex<Vec<Completer>>),
}

/// A claimed window. Dropping it takes the window off the bus; accesses under way end in peace.
pub struct Claim {
    bus: Arc<Bus>,
    window: Window,
}

/// Why a window cannot be claimed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Window {wanted} overlaps {taken}, which another device holds")]
pub struct ClaimError {
    /// The window asked for.
    pub wanted: Window,
    /// The one that is in its way.
    pub taken: Window,
}

impl Bus {
    /// A bus without windows.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Gives `window` to `device` until the claim is dropped.
    ///
    /// # Errors
    /// The window overlaps one that is claimed.
    pub fn claim(self: &Arc<Self>, window: Window, device: Arc<dyn Device>) -> Result<Claim, ClaimError> {
        self.occupy(window, Occupant::Device(device))
    }

    /// Takes `window` for a device that is still to come; see [`Claim::fill`]. Whoever asks [`Bus::awaited`] before an
    /// access has it wait until then.
    ///
    /// # Errors
    /// The window overlaps one that is claimed.
    pub fn reserve(self: &Arc<Self>, window: Window) -> Result<Claim, ClaimError> {
        let claim = self.occupy(window, Occupant::Awaited(Mutex::default()))?;
        self.awaited.fetch_add(1, Ordering::Release);
        Ok(claim)
    }

    fn occupy(self: &Arc<Self>, window: Window, occupant: Occupant) -> Result<Claim, ClaimError> {
        let mut windows = self.change();
        // Windows do not overlap, so only the last to start before our end can reach into ours.
        let place = windows.starting_until(window.space(), window.last());
        if let Some(below) = place.checked_sub(1).and_then(|below| windows.get(below))
            && below.window.space() == window.space()
            && below.window.last() >= window.first()
        {
            return Err(ClaimError { wanted: window, taken: below.window });
        }
        windows.insert(place, Entry { window, occupant });
        Ok(Claim { bus: Arc::clone(self), window })
    }

    /// What an access at `addr` has to wait for, if its window awaits its device. An access that does not wait finds
    /// such a window empty.
    pub fn awaited(&self, space: Space, addr: u64) -> Option<Deferral> {
        // The common case costs no lock.
        if self.awaited.load(Ordering::Acquire) == 0 {
            return None;
        }
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        let entry = windows.at(space, addr)?;
        entry.window.offset_of(addr, 1)?;
        let Occupant::Awaited(waiting) = &entry.occupant else { return None };
        let (completer, deferral) = defer();
        waiting.lock().unwrap_or_else(PoisonError::into_inner).push(completer);
        Some(deferral)
    }

    /// Reads `data.len()` bytes at `addr`: all-ones where no window holds them all.
    pub fn read(&self, space: Space, addr: u64, data: &mut [u8]) {
        match self.lookup(space, addr, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `addr`: to nowhere, if no window holds all of it.
    pub fn write(&self, space: Space, addr: u64, data: &[u8]) -> Written {
        match self.lookup(space, addr, data.len()) {
            Some((offset, device)) => device.write(offset, data),
            None => Written::Now,
        }
    }

    /// How many accesses found no window so far.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn lookup(&self, space: Space, addr: u64, len: usize) -> Option<(u64, Arc<dyn Device>)> {
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        let found = windows.at(space, addr).and_then(|entry| match &entry.occupant {
            Occupant::Device(device) => Some((entry.window.offset_of(addr, len)?, Arc::clone(device))),
            Occupant::Awaited(_) => None,
        });
        if found.is_none() {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    fn change(&self) -> RwLockWriteGuard<'_, Windows> {
        self.windows.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looking windows up by address.
trait At {
    /// How many windows start at or below `addr`, or in a space before this.
    fn starting_until(&self, space: Space, addr: u64) -> usize;

    /// The last window to start at or below `addr`: the only one that can hold it.
    fn at(&self, space: Space, addr: u64) -> Option<&Entry>;

    /// Where a window is that was put in.
    fn place_of(&self, window: Window) -> Option<usize>;
}

impl At for Windows {
    fn starting_until(&self, space: Space, addr: u64) -> usize {
        self.partition_point(|entry| entry.window.key() <= (space, addr))
    }

    fn at(&self, space: Space, addr: u64) -> Option<&Entry> {
        let entry = self.get(self.starting_until(space, addr).checked_sub(1)?)?;
        (entry.window.space() == space).then_some(entry)
    }

    fn place_of(&self, window: Window) -> Option<usize> {
        self.binary_search_by_key(&window.key(), |entry| entry.window.key()).ok()
    }
}

impl Claim {
    /// The window held.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Puts `device` into the window, in place of what was there. Accesses that waited for it are done before this
    /// returns, on this thread.
    pub fn fill(&self, device: Arc<dyn Device>) {
        let mut windows = self.bus.change();
        let place = windows.place_of(self.window);
        let entry = place.and_then(|place| windows.get_mut(place));
        let before = entry.map(|entry| mem::replace(&mut entry.occupant, Occupant::Device(device)));
        drop(windows);
        self.let_go(before);
    }

    /// Without the lock: what goes may use the bus, as do accesses that have waited.
    fn let_go(&self, occupant: Option<Occupant>) {
        if matches!(occupant, Some(Occupant::Awaited(_))) {
            self.bus.awaited.fetch_sub(1, Ordering::Release);
        }
        drop(occupant);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut windows = self.bus.change();
        let removed = windows.place_of(self.window).map(|place| windows.remove(place));
        drop(windows);
        self.let_go(removed.map(|entry| entry.occupant));
    }
}
