//! What the operator writes.

use serde::{Deserialize, Serialize};
use virtio_backend::Rate;

/// What the operator writes of a source of entropy; every key may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many bytes the guest gets; as many as it asks for if left out.
    pub rate: Option<Rate>,
}

/// Why there is no source of entropy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The guest would never get a byte.
    #[error("The rate {{ per_second = {per_second}, burst = {burst} }} gives no entropy: both are at least 1 byte")]
    Rate {
        /// What was written, in bytes.
        per_second: u64,
        /// What was written, in bytes.
        burst: u64,
    },
    /// It came with descriptors, of which it needs none.
    #[error("A source of entropy needs no descriptors, and came with {count}")]
    Descriptors {
        /// How many.
        count: usize,
    },
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match self.rate {
            Some(Rate { per_second, burst }) if per_second == 0 || burst == 0 => {
                Err(ConfigError::Rate { per_second, burst })
            }
            _ => Ok(()),
        }
    }
}
