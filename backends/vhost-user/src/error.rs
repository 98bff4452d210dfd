//! Why there is no device.

use std::io;
use std::path::PathBuf;

use crate::{ConfigError, ConnectionError, DeviceType};

/// Why there is no device whose backend is another program.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// It cannot be as it is written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody is there.
    #[error("No backend can be reached at {socket:?}: start it before the guest, with this socket")]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Somebody is there and is no backend, or is busy with another.
    #[error(
        "Whoever listens at {socket:?} does not answer as a backend does: see that it is a vhost-user backend, and \
         that nobody else uses it"
    )]
    NoBackend {
        /// Where.
        socket: PathBuf,
        /// What it did.
        #[source]
        source: ConnectionError,
    },
    /// It knows what came before virtio 1.0 alone.
    #[error("The backend at {socket:?} does not offer virtio 1.0 (VIRTIO_F_VERSION_1): use a newer one")]
    Legacy {
        /// Where.
        socket: PathBuf,
    },
    /// It leaves configuration space to us.
    #[error(
        "The backend at {socket:?} does not tell the configuration space of a device {device}, which has {size} bytes: \
         see that it is the backend of such a device{remedy}"
    )]
    NoConfig {
        /// Where.
        socket: PathBuf,
        /// What it is to be.
        device: DeviceType,
        /// Bytes of configuration space.
        size: u16,
        /// What else can be done.
        remedy: &'static str,
    },
    /// It does not have so much configuration space.
    #[error(
        "The backend at {socket:?} does not have {size} bytes of configuration space: write config_size = ... with as \
         many as it has"
    )]
    ConfigSize {
        /// Where.
        socket: PathBuf,
        /// Bytes that it was asked for.
        size: u16,
    },
    /// It has fewer queues than the operator wants.
    #[error("The backend at {socket:?} has {has} queues: write queues = {has} or less, or give it more")]
    Queues {
        /// Where.
        socket: PathBuf,
        /// How many it has.
        has: u64,
    },
    /// The host has no descriptors left.
    #[error("The host does not give what the device needs")]
    Host(#[source] io::Error),
    /// It came with other descriptors than it needs: a bug.
    #[error("The device came with other descriptors than the one of its connection")]
    Descriptors,
    /// The configuration was not completed by `open`: a bug.
    #[error("The device came without what was found of its backend")]
    NotFound,
}
