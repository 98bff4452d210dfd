//! What the operator writes.

use serde::{Deserialize, Serialize};

/// What the operator writes of it; every key may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

/// Why it cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It came with other descriptors than it needs.
    #[error("The device came with other descriptors than it needs")]
    Descriptors,
}
