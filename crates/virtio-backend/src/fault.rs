//! Three parties can be at fault, and each is treated in its own way.

use std::io;

use guest_memory::AccessError;

/// Why a lane stopped. Whichever it is, the device shows DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2) and
/// all else goes on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The driver broke the protocol. A reset by a sane driver mends it.
    #[error("The guest's driver is at fault")]
    Guest(#[from] GuestFault),
    /// The host withdrew something that the device cannot work without.
    #[error("The host failed the device: {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The device's own code broke a rule. Worth a report.
    #[error("A bug in the device: {0}")]
    Bug(String),
}

/// How a driver broke the protocol (virtio 1.2 §2.7).
#[derive(Debug, thiserror::Error)]
pub enum GuestFault {
    /// Size, alignment or placement of a ring is impossible.
    #[error("Queue set up wrongly: {0}")]
    Setup(&'static str),
    /// The ring itself cannot be read or written, or its index jumped.
    #[error("The queue cannot be worked")]
    Ring(#[source] virtio_queue::Error),
    /// Part of the ring is no memory of the guest any more.
    #[error("The available ring cannot be read")]
    Unreadable(#[source] AccessError),
    /// What of the ring or of its requests is granted cannot be reached, or not any more.
    #[error("Granted memory cannot be reached")]
    Unreachable(#[source] AccessError),
    /// A descriptor points at something that is no memory of the guest.
    #[error("Descriptor chain {head} describes unusable memory")]
    Memory {
        /// The chain's head.
        head: u16,
        /// What is wrong with it.
        #[source]
        source: AccessError,
    },
    /// A descriptor chain is malformed.
    #[error("Descriptor chain {head} {what}")]
    Chain {
        /// The chain's head.
        head: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The request makes no sense to the device, in a way that no status could report.
    #[error("Request {head} {what}")]
    Request {
        /// The chain's head.
        head: u16,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl GuestFault {
    /// Why memory could not be reached, if that was it.
    pub(crate) fn cause(&self) -> Option<&AccessError> {
        match self {
            Self::Unreadable(source) | Self::Unreachable(source) | Self::Memory { source, .. } => Some(source),
            Self::Setup(_) | Self::Ring(_) | Self::Chain { .. } | Self::Request { .. } => None,
        }
    }
}
