//! What devices take of the host for themselves alone, and that no two of them take the same.

use std::collections::HashMap;

use super::entry::Written;
use super::{ConfigError, Entry};

/// Who has what, of the entries of one file.
#[derive(Default)]
pub(super) struct Claims {
    /// What is taken, and in which line.
    taken: HashMap<String, usize>,
}

impl Claims {
    /// Notes what a device takes.
    ///
    /// # Errors
    /// Another has it; the message names both.
    pub(super) fn claim(&mut self, written: &Written<'_>, entry: &Entry) -> Result<(), ConfigError> {
        for thing in entry.model.exclusive() {
            if let Some(line) = self.taken.get(&thing) {
                let what = format!("This device is to have {thing} for itself alone, and that of line {line} has it");
                return Err(written.wrong(what));
            }
            self.taken.insert(thing, entry.origin.line);
        }
        Ok(())
    }
}
