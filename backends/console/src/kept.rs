//! What is kept of a console for the process that follows if this one dies: what device and driver have told each other.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use virtio_backend::{Memo, Record};

use crate::control::{Control, Message};

/// What is noted.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Noted {
    pub(crate) control: Control,
    /// What was said last, which the driver may not have been shown yet.
    pub(crate) said: Vec<Said>,
}

/// A message to the driver.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Said {
    /// The head of the request that it stands in.
    pub(crate) head: u16,
    pub(crate) port: usize,
    pub(crate) message: Message,
}

/// The place where it is noted.
#[derive(Default)]
pub(crate) struct Kept(OnceLock<Memo<Noted>>);

impl Kept {
    /// Keeps it here from now on.
    pub(crate) fn keep(&self, record: &Record) {
        // It is said once.
        let _ = self.0.set(record.device());
    }

    /// A driver begins anew, to which nothing has been said.
    pub(crate) fn clear(&self) {
        self.0.get().into_iter().for_each(Memo::clear);
    }

    /// What is noted of a console with so many ports.
    ///
    /// What cannot be read is as after a reset: the driver is not spoken to, and its ports go on as they are.
    pub(crate) fn load(&self, ports: usize) -> Option<Noted> {
        let noted = self.0.get()?.load().unwrap_or_else(|error| {
            tracing::warn!(name: "console.unknown_past", %error, "The guest hears nothing new of a console's ports");
            None
        });
        noted.filter(|noted| noted.control.ports() == ports)
    }

    pub(crate) fn store(&self, noted: &Noted) {
        if let Some(memo) = self.0.get()
            && let Err(error) = memo.store(noted)
        {
            tracing::error!(name: "console.unsaved", %error, "If this process dies a console's ports do not go on");
        }
    }
}
