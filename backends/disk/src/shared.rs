//! What driver, lanes and operator have in common of a disk, as long as there is one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::cache_mode::CacheMode;
use crate::capacity::Capacity;
use crate::config::OnError;
use crate::counters::Counters;
use crate::hold::Hold;
use crate::kept::{Kept, Note};
use crate::limits::Limits;
use crate::{Plan, Storage};

/// See the module.
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) capacity: Capacity,
    pub(crate) cache: CacheMode,
    /// Of a disk that has any.
    pub(crate) limits: Option<Limits>,
    /// Of a disk whose failed requests wait for the operator.
    pub(crate) hold: Option<Arc<Hold>>,
    pub(crate) kept: Kept,
    /// A flush failed since the driver started the disk. The kernel has told so once and forgets what it could not write,
    /// so no later flush can be believed: the driver has to see every one of them fail.
    flush_failed: AtomicBool,
}

impl Shared {
    /// Of a disk that is to be as planned.
    ///
    /// # Errors
    /// No timer is to be had for its limits.
    pub(crate) fn of(plan: &Plan, storage: &dyn Storage) -> io::Result<Self> {
        Ok(Self {
            counters: Counters::default(),
            capacity: Capacity::new(plan.geometry.size),
            cache: CacheMode::new(plan.write_through),
            limits: Limits::new(plan.iops, plan.bandwidth)?,
            hold: (plan.on_error == OnError::Hold).then(|| Hold::new(storage.name())),
            kept: Kept::default(),
            flush_failed: AtomicBool::new(false),
        })
    }

    /// The driver starts the disk anew, with these features.
    pub(crate) fn negotiated(&self, features: u64) {
        self.cache.negotiated(features);
        self.flush_failed.store(false, SeqCst);
        self.keep();
    }

    /// See [`CacheMode::set_writeback`].
    pub(crate) fn set_writeback(&self, value: u8) {
        self.cache.set_writeback(value);
        self.keep();
    }

    /// Sets the capacity to `size` bytes, and has `tell` tell the driver.
    pub(crate) fn change_capacity(&self, size: u64, tell: impl FnOnce()) {
        self.capacity.change(size, || {
            self.keep();
            tell();
        });
    }

    pub(crate) fn flush_failed(&self) -> bool {
        self.flush_failed.load(SeqCst)
    }

    /// A flush failed. Noted when this returns: whoever answers a request after it may believe that.
    pub(crate) fn note_failed_flush(&self) {
        if !self.flush_failed.swap(true, SeqCst) {
            self.keep();
        }
    }

    fn keep(&self) {
        self.kept.note(|| self.note());
    }

    /// What a process that follows has to know.
    pub(crate) fn note(&self) -> Note {
        let (cache, sectors) = (self.cache.bits(), self.capacity.sectors());
        Note { cache, sectors, flush_failed: self.flush_failed() }
    }

    /// Takes up what a former process has noted.
    pub(crate) fn restore(&self, note: Note) {
        self.cache.restore(note.cache);
        self.capacity.restore(note.sectors);
        self.flush_failed.store(note.flush_failed, SeqCst);
    }
}
