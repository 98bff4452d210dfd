//! What can go wrong between two rings: on the guest's side or in here, or on the backend's.

use virtio_backend::Fault;

use crate::wire::ConnectionError;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The device cannot go on.
    Fault(Fault),
    /// The connection cannot.
    Connection(ConnectionError),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<ConnectionError> for Trouble {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}
