//! Why guest memory could not be reached, told apart by whose fault it is.

use std::{io, sync::Arc};

use vm_memory::{GuestAddress, GuestMemoryError};

/// Why guest memory could not be reached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AccessError {
    /// The guest's fault: no memory is at this address.
    #[error("The guest has no memory at {address:#x}")]
    Hole {
        /// First byte that could not be reached.
        address: u64,
    },
    /// The guest's fault: the range goes beyond the last address.
    #[error("A guest buffer of {len} bytes at {address:#x} passes the end of the address space")]
    Overflow {
        /// Start of the range.
        address: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// The guest's fault, unless the caller set no bound of its own: more than could ever be mapped at once.
    #[error("A guest buffer of {len} bytes is more than the {limit} that may be mapped at once")]
    TooLarge {
        /// Length of the range in bytes.
        len: usize,
        /// What the budget allows.
        limit: u64,
    },
    /// The address names a grant, and this device was given no way to reach grants.
    #[error(
        "The guest passed grant {reference}, but this device does not use grants; give it grant_usage=1 in the guest's \
         configuration"
    )]
    NoGrantSource {
        /// The grant reference.
        reference: u64,
    },
    /// The address names a frame, and this device may use grants only.
    #[error(
        "The guest passed the address {address:#x}, which is no grant, but this device uses grants only (grant_usage=1): \
         its driver does not know them"
    )]
    GrantsOnly {
        /// The first byte that is in no granted page.
        address: u64,
    },
    /// The guest's fault: it has not granted the page to us, not for what it is wanted for, or not any more.
    #[error("The guest passed grant {reference}, but has not granted this page to us, or not for this access")]
    Refused {
        /// The grant reference, or the first of several of which one is at fault.
        reference: u64,
    },
    /// Nobody's fault: all that may be mapped is in use by requests in flight, or the host has no room.
    ///
    /// Try again when a request has completed. With none in flight it will not get better: let go of the view's own
    /// pins ([`View::flush`](crate::View::flush)), and treat a second failure as the host's.
    #[error("All the guest memory that may be mapped is in use")]
    Busy,
    /// The host's fault.
    #[error("Mapping guest memory failed")]
    Host(#[source] Arc<io::Error>),
}

impl From<AccessError> for GuestMemoryError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Hole { address } | AccessError::GrantsOnly { address } => {
                Self::InvalidGuestAddress(GuestAddress(address))
            }
            AccessError::Overflow { .. } => Self::GuestAddressOverflow,
            AccessError::TooLarge { .. } => Self::IOError(io::Error::new(io::ErrorKind::InvalidInput, error)),
            AccessError::NoGrantSource { .. } => Self::IOError(io::Error::new(io::ErrorKind::Unsupported, error)),
            AccessError::Refused { .. } => Self::IOError(io::Error::new(io::ErrorKind::PermissionDenied, error)),
            AccessError::Busy => Self::IOError(io::Error::new(io::ErrorKind::WouldBlock, error)),
            AccessError::Host(ref source) => Self::IOError(io::Error::new(source.kind(), error)),
        }
    }
}
