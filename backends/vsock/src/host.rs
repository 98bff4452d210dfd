//! Unix sockets on the host: the one that is listened at, and those the guest connects to.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::ConfigError;

/// How many connections may wait at the socket until the device takes them.
const WAITING: i32 = 128;

/// Where a device's socket is if the operator does not say: in a directory, which is made.
pub(crate) fn usual_place(directory: &Path, guest: &str, index: usize) -> Result<PathBuf, ConfigError> {
    let directory = directory.join("vsock");
    let name = if index == 0 { format!("{guest}.sock") } else { format!("{guest}-{index}.sock") };
    let socket = directory.join(name);
    let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
    made.map(|()| socket.clone()).map_err(|source| ConfigError::Listen { socket, source })
}

/// Listens at `socket`, for root and the like alone. A name that a program left behind is taken over.
pub(crate) fn listen(socket: &Path) -> Result<OwnedFd, ConfigError> {
    let outcome = match try_to_listen(socket) {
        Err(Errno::ADDRINUSE) => {
            remove_leftover(socket)?;
            try_to_listen(socket)
        }
        outcome => outcome,
    };
    outcome.map_err(|errno| ConfigError::Listen { socket: socket.to_owned(), source: errno.into() })
}

fn try_to_listen(socket: &Path) -> Result<OwnedFd, Errno> {
    let listener = new_socket()?;
    // Before it has a name: that gets its permissions from here.
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(socket)?)?;
    rustix::net::listen(&listener, WAITING)?;
    Ok(listener)
}

fn remove_leftover(socket: &Path) -> Result<(), ConfigError> {
    let named = || socket.to_owned();
    let failed = |source| ConfigError::Listen { socket: named(), source };
    if !fs::symlink_metadata(socket).map_err(failed)?.file_type().is_socket() {
        return Err(ConfigError::NoSocket { socket: named() });
    }
    match connect(socket) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(socket).map_err(failed),
        Ok(_) => Err(ConfigError::InUse { socket: named() }),
        // Whoever has no room for us is alive.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ConfigError::InUse { socket: named() }),
        Err(error) => Err(failed(error)),
    }
}

/// Takes the name of a socket away.
pub(crate) fn remove(socket: &Path) {
    if fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket()) {
        // What is gone already does not matter, and of the rest nobody could make use.
        let _ = fs::remove_file(socket);
    }
}

/// Where a program on the host waits for the guest's connections to `port`.
pub(crate) fn place_of_port(socket: &Path, port: u32) -> PathBuf {
    let mut name = OsString::from(socket);
    name.push(format!("_{port}"));
    name.into()
}

/// Connects to whoever listens at `socket`. The socket never blocks.
///
/// # Errors
/// Nobody listens there, or the host does not allow it; [`WouldBlock`](ErrorKind::WouldBlock): too many wait there already.
pub(crate) fn connect(socket: &Path) -> io::Result<OwnedFd> {
    let here = new_socket()?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&here, &SocketAddrUnix::new(socket)?))?;
    Ok(here)
}

/// Takes one of those who wait at the listening socket. `None` if nobody does.
///
/// # Errors
/// The host has no descriptor or no memory for it.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    loop {
        match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => return Ok(Some(socket)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
