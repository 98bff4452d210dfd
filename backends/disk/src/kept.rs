//! What of a disk survives the process that serves it: what its driver has set and been told, beyond registers and queues.
//!
//! Limits start full in a process that follows, and counters at zero; what is held for the operator is in flight, comes
//! again, and is held again if the host fails it again.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_backend::{Memo, Record};

use crate::cache_mode::CacheMode;
use crate::shared::Shared;

/// What is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    /// The bits of the [cache mode](CacheMode).
    pub(crate) cache: u8,
    /// The capacity that the driver knows, or is about to be told.
    pub(crate) sectors: u64,
    /// A flush has failed since the driver started the disk.
    pub(crate) flush_failed: bool,
}

impl Note {
    /// Where it cannot be read, the worst is taken for true.
    const UNREADABLE: Self = Self { cache: CacheMode::STRICTEST, sectors: u64::MAX, flush_failed: true };
}

/// The place of the note, once there is one.
#[derive(Default)]
pub(crate) struct Kept {
    memo: OnceLock<Memo<Note>>,
    /// Notes are taken one at a time, for the last one to be the newest.
    writing: Mutex<()>,
}

impl Kept {
    /// Finds in `record` what a former process has left, and keeps there what changes from now on.
    pub(crate) fn begin(&self, record: &Record, disk: &Shared, image: &str) {
        let memo = record.device::<Note>();
        let left = memo.load().unwrap_or_else(|error| {
            tracing::error!(
                name: "disk.lost", image, %error,
                "What a former process has noted of the disk cannot be read: its flushes fail until its driver resets it"
            );
            Some(Note::UNREADABLE)
        });
        if let Some(note) = left {
            disk.restore(note);
        }
        // A second record there is not.
        let _ = self.memo.set(memo);
        self.note(|| disk.note());
    }

    /// Notes what is true now, before it has an effect that the driver can see.
    pub(crate) fn note(&self, now: impl FnOnce() -> Note) {
        let Some(memo) = self.memo.get() else { return };
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // It has room for more than a note is long.
        let _ = memo.store(&now());
    }
}
