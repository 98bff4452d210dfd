//! Listening Unix sockets.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen as start, socket_with,
};

use super::failed;
use crate::ConfigError;

/// How long a socket may be in use: a guest that reboots may find its former self's device about to end.
const IN_USE_PATIENCE: Duration = Duration::from_secs(3);
const IN_USE_RETRY: Duration = Duration::from_millis(50);

/// Connections that may wait; those that cannot be served are told so at once.
const BACKLOG: i32 = 4;

/// Bytes of `sun_path`, the closing NUL not counted.
const MOST_PATH: usize = 107;

/// Listens at `path`, where only the owner may connect. A socket that nobody listens to any more is replaced.
pub(super) fn listen(path: &Path) -> Result<OwnedFd, ConfigError> {
    if path.as_os_str().len() > MOST_PATH {
        return Err(ConfigError::LongPath { path: path.to_owned(), most: MOST_PATH });
    }
    let deadline = Instant::now() + IN_USE_PATIENCE;
    loop {
        match try_listen(path) {
            Err(ConfigError::SocketInUse { .. }) if Instant::now() < deadline => thread::sleep(IN_USE_RETRY),
            outcome => return outcome,
        }
    }
}

/// Takes the name of a socket away to which nobody listens.
pub(super) fn remove(path: &Path) {
    if is_socket(path) && !is_alive(path) {
        let _ = fs::remove_file(path);
    }
}

fn try_listen(path: &Path) -> Result<OwnedFd, ConfigError> {
    match fs::symlink_metadata(path) {
        Ok(_) if !is_socket(path) => return Err(ConfigError::Occupied { path: path.to_owned(), wanted: "socket" }),
        Ok(_) if is_alive(path) => return Err(ConfigError::SocketInUse { path: path.to_owned() }),
        Ok(_) => fs::remove_file(path).map_err(|error| failed("replace", path, error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", path, error)),
    }
    bound(path).map_err(|errno| failed("listen on", path, errno.into()))
}

fn bound(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before it has a name: the name is made with this mode.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    start(&socket, BACKLOG)?;
    Ok(socket)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket())
}

/// Whether someone has this socket open. Asked with a socket of another type, so that whoever listens does not take it
/// for a reader: that the types differ is found out only where there is someone.
fn is_alive(path: &Path) -> bool {
    let asked = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    !matches!(asked(), Err(Errno::CONNREFUSED | Errno::NOENT))
}
