//! What can go wrong with a request.

use std::sync::Arc;

use crate::wire::{ErrorCode, MessageType, WireError};

/// Why a request has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No xenstored answers at any of the places where it could be.
    #[error(
        "Xenstored is not running, or this machine does not run Xen (tried {}). \
         If `cat /sys/hypervisor/type` says xen, start it: systemctl start xenstored",
        .tried.join("; ")
    )]
    NotRunning {
        /// Each place tried, and what happened there.
        tried: Vec<String>,
    },
    /// Xenstored said no.
    #[error("Xenstored refused {operation} of {path:?}: {code}")]
    Refused {
        /// What was asked.
        operation: MessageType,
        /// About which node.
        path: String,
        /// Its reason.
        code: ErrorCode,
    },
    /// The connection ended while the request was in flight, or is not back yet. Whether the request took effect is
    /// not known. The client reconnects by itself; afterwards every watch has an event.
    #[error("The connection to xenstored at {address} was lost ({reason}); it is being made again")]
    ConnectionLost {
        /// Where xenstored is.
        address: Arc<str>,
        /// What happened.
        reason: Arc<str>,
    },
    /// The request breaks a limit of the protocol, and was not sent.
    #[error("Cannot ask xenstored for {operation} of {path:?}")]
    BadRequest {
        /// What was to be asked.
        operation: MessageType,
        /// About which node.
        path: String,
        /// Which limit.
        #[source]
        source: WireError,
    },
    /// The reply is none that belongs to the request.
    #[error("Xenstored answered {operation} of {path:?} with something else")]
    BadReply {
        /// What was asked.
        operation: MessageType,
        /// About which node.
        path: String,
    },
    /// The node's value is not UTF-8.
    #[error("The value of {path:?} in xenstore is not text")]
    NotText {
        /// The node.
        path: String,
        /// Where it ceases to be text; the bytes are in it.
        #[source]
        source: std::string::FromUtf8Error,
    },
    /// Someone else changed the same nodes each time.
    #[error("A xenstore transaction met conflicting changes {attempts} times in a row")]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },
}

impl Error {
    /// Xenstored's own reason, if it was xenstored that refused.
    #[must_use]
    pub fn code(&self) -> Option<&ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// This domain may not: most nodes are for Dom0 and the domain that they are about.
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        self.code() == Some(&ErrorCode::NoPermission)
    }

    /// The node does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(&ErrorCode::NotFound)
    }
}
