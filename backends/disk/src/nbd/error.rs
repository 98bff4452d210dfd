//! What can go wrong with a server.

use std::io;

/// Why a server, or its export, cannot be used; by this connection at least.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Its name leads nowhere.
    #[error("The host {host} cannot be found; check the name, or write its address")]
    Resolve {
        /// As written.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("Nobody can be reached at {place}; is the server running, and its port or socket open to this host?")]
    Connect {
        /// Host and port, or the socket's path.
        place: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// It has ended the connection.
    #[error("The server ended the connection")]
    Ended,
    /// It does not answer.
    #[error(
        "The server did not answer within {seconds} s; does it serve so many connections at a time (queues, --shared)?"
    )]
    Hung {
        /// How long was waited.
        seconds: u64,
    },
    /// It has stopped answering.
    #[error("The server has not answered for {seconds} s")]
    Silent {
        /// How long that was.
        seconds: u64,
    },
    /// It does not come back.
    #[error("The server has not been back for {seconds} s (reconnect_timeout)")]
    Gone {
        /// How long that was.
        seconds: u64,
    },
    /// It broke the protocol.
    #[error("The server broke the NBD protocol: {0}")]
    Lied(&'static str),
    /// It speaks the protocol in a way that is not spoken here.
    #[error("The server {0}")]
    Unspoken(&'static str),
    /// It has no such export.
    #[error(
        "The server has no export of the name {export:?}{message}; list those it has with `nbdinfo --list` or `qemu-nbd --list`"
    )]
    NoExport {
        /// The name asked for.
        export: String,
        /// What the server says, in brackets, if anything.
        message: String,
    },
    /// It does not give the export.
    #[error("The server refused the export{message} ({code:#x})")]
    Refused {
        /// The reply's type.
        code: u32,
        /// What the server says, in brackets, if anything.
        message: String,
    },
    /// The export is no disk.
    #[error("The export {what}")]
    Export {
        /// What it is instead.
        what: String,
    },
    /// It is not the one it was.
    #[error("The export that came back is another: {0}")]
    Changed(&'static str),
    /// The host has no memory or no descriptors, or the connection failed below the protocol.
    #[error("The connection failed")]
    Host(#[source] io::Error),
}

impl NbdError {
    /// Whether what is there now is another disk, so that requests fail instead of waiting for it. A server that does not
    /// have the export may be about to.
    pub(super) fn is_for_good(&self) -> bool {
        matches!(self, Self::Changed(_) | Self::Export { .. })
    }
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::UnexpectedEof => Self::Ended,
            _ => Self::Host(error),
        }
    }
}
