//! From an address to a connected socket, where it may take time and a right.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::NbdError;
use super::patient::Deadline;
use super::uri::{Address, Server};

/// A host that is gone tells nobody. With these the kernel asks a silent one after so long, again and again, and gives
/// up what was sent and not even taken; how long a server thinks does not matter as long as its host is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;
const UNTAKEN_MS: u32 = 30_000;

/// Connects to the server. The socket never blocks.
///
/// # Errors
/// There is nobody, or nobody in time.
pub(super) fn dial(address: &Address, deadline: Deadline) -> Result<OwnedFd, NbdError> {
    match &address.server {
        Server::Tcp { host, port } => dial_tcp(host, *port, deadline),
        Server::Unix(path) => {
            let failed = |source| NbdError::Connect { place: path.display().to_string(), source };
            let to_path = || {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                let address = SocketAddrUnix::new(path)?;
                rustix::io::retry_on_intr(|| connect(&socket, &address))?;
                Ok(socket)
            };
            to_path().map_err(failed)
        }
    }
}

fn dial_tcp(host: &str, port: u16, deadline: Deadline) -> Result<OwnedFd, NbdError> {
    let resolved = (host, port).to_socket_addrs();
    let addresses = resolved.map_err(|source| NbdError::Resolve { host: host.to_owned(), source })?;
    let mut why = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let Some(left) = deadline.left() else { break };
        let connected = TcpStream::connect_timeout(&address, left).and_then(|stream| {
            prepare(&stream)?;
            Ok(stream.into())
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => why = error,
        }
    }
    Err(NbdError::Connect { place: format!("{host}, port {port}"), source: why })
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    // A request is complete when it is sent; there is nothing to wait for.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(sockopt::set_tcp_user_timeout(stream, UNTAKEN_MS)?)
}
