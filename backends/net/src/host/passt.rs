//! A running passt, which puts the guest on the host's own network without rights or interfaces.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::HostError;

/// Connects to passt, without blocking from then on.
///
/// # Errors
/// Nobody listens there.
pub(super) fn connect(socket: &Path) -> Result<OwnedFd, HostError> {
    let connected = UnixStream::connect(socket).and_then(|stream| {
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    connected.map(OwnedFd::from).map_err(|source| HostError::Passt { socket: socket.to_owned(), source })
}
