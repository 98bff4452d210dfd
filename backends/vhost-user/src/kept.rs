//! What is kept for the process that follows if this one dies: that the backend has been put to work, and what the driver
//! wrote to configuration space.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use virtio_backend::{Memo, Record};

/// What is noted.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Noted {
    /// Writes of the driver's that the backend is to know of: where, and the bytes.
    pub(crate) written: Vec<(usize, Vec<u8>)>,
}

/// The place where it is noted.
#[derive(Default)]
pub(crate) struct Kept(OnceLock<Memo<Noted>>);

impl Kept {
    /// Keeps it here from now on. Gives what a former process noted, if it has put the backend to work.
    pub(crate) fn keep(&self, record: &Record) -> Option<Noted> {
        let memo = self.0.get_or_init(|| record.device());
        memo.load().unwrap_or_else(|error| {
            // A backend that was not at work does not mind being stopped.
            tracing::warn!(name: "vhost_user.unknown_past", %error, "The backend does not hear of the driver's writes");
            Some(Noted::default())
        })
    }

    /// The backend is at work, or about to be.
    pub(crate) fn note(&self, written: Vec<(usize, Vec<u8>)>) {
        if let Some(memo) = self.0.get()
            && let Err(error) = memo.store(&Noted { written })
        {
            tracing::error!(name: "vhost_user.unsaved", %error, "If this process dies the backend has to be started anew");
        }
    }
}
