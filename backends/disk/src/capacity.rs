//! How large the disk is, which an operator can have looked at again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::request::SECTOR_SIZE;

/// The size of a disk, for its lanes and for its driver.
#[derive(Debug)]
pub(crate) struct Capacity {
    /// What requests are held to.
    sectors: AtomicU64,
    /// Held by who changes the size, until the driver's next look at ConfigGeneration tells of it, and by who reads it.
    changing: Mutex<()>,
}

impl Capacity {
    /// That of a disk of `size` bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self { sectors: AtomicU64::new(size / SECTOR_SIZE), changing: Mutex::default() }
    }

    /// Goes on with `sectors` that a former process has told the driver of. What the storage has grown by since is not told
    /// before the operator says so, and what it does not have any more, if it ever had it, is not there.
    pub(crate) fn restore(&self, sectors: u64) {
        self.sectors.fetch_min(sectors, Ordering::AcqRel);
    }

    /// In sectors, for a request.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// The same in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.sectors() * SECTOR_SIZE
    }

    /// In sectors, for the driver. It reads the two halves one by one, and a generation that is the same before and after
    /// means that they belong together (§2.5.3): so no half of a new size is seen before the generation has changed.
    pub(crate) fn shown(&self) -> u64 {
        let _unchanged = self.changing();
        self.sectors()
    }

    /// Sets it to `size` bytes, and has `tell` change the generation. Gives the old size in bytes.
    pub(crate) fn change(&self, size: u64, tell: impl FnOnce()) -> u64 {
        let _unseen = self.changing();
        let before = self.sectors.swap(size / SECTOR_SIZE, Ordering::AcqRel);
        tell();
        before * SECTOR_SIZE
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn e13_no_half_of_a_new_size_is_seen_before_the_generation_tells_of_it() {
        let (capacity, told) = (Capacity::new(512), AtomicBool::new(false));
        let (says, said) = mpsc::channel();
        thread::scope(|scope| {
            let before = capacity.change(1024, || {
                let (capacity, told) = (&capacity, &told);
                scope.spawn(move || says.send((capacity.shown(), told.load(Ordering::SeqCst))));
                // Time for it to see what it must not.
                thread::sleep(Duration::from_millis(20));
                told.store(true, Ordering::SeqCst);
            });
            assert_eq!((before, said.recv().unwrap()), (512, (2, true)));
        });
    }
}
