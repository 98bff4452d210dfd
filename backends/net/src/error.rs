//! Why a network card cannot be.

use std::io;

use crate::ConfigError;

/// Why a network card cannot be: as it is written, or on this host.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// What is written makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host does not have what it needs, or does not give it.
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    /// The configuration was not completed: that is what opening it does.
    #[error("The network card has no address yet: open it before it is made, or give mac")]
    NoAddress,
    /// It came with other descriptors than it needs.
    #[error("The network card came with {given} descriptors, and needs {needed}: one for each pair of queues")]
    Descriptors {
        /// How many came.
        given: usize,
        /// How many it needs.
        needed: usize,
    },
    /// A descriptor is not what it should be.
    #[error("The network card's descriptor is not a tap's that is ready for use")]
    NoTap(#[source] io::Error),
}
