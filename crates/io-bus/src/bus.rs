//! The table of windows, and the way an access takes through it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::{Deferral, Space, Window};

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
    /// Keyed by space and first address; no two windows of a space overlap.
    windows: RwLock<BTreeMap<(Space, u64), Entry>>,
    unclaimed: AtomicU64,
}

struct Entry {
    window: Window,
    device: Arc<dyn Device>,
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
        let key = (window.space(), window.first());
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        // Windows do not overlap, so only the last to start before our end can reach into ours.
        if let Some((_, below)) = windows.range(..=(window.space(), window.last())).next_back()
            && below.window.space() == window.space()
            && below.window.last() >= window.first()
        {
            return Err(ClaimError { wanted: window, taken: below.window });
        }
        windows.insert(key, Entry { window, device });
        Ok(Claim { bus: Arc::clone(self), window })
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
        let found = windows
            .range(..=(space, addr))
            .next_back()
            .filter(|((its_space, _), _)| *its_space == space)
            .and_then(|(_, entry)| Some((entry.window.offset_of(addr, len)?, Arc::clone(&entry.device))));
        if found.is_none() {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
        found
    }
}

impl Claim {
    /// The window held.
    pub fn window(&self) -> Window {
        self.window
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut windows = self.bus.windows.write().unwrap_or_else(PoisonError::into_inner);
        let removed = windows.remove(&(self.window.space(), self.window.first()));
        // The device's own drop may use the bus.
        drop(windows);
        drop(removed);
    }
}
