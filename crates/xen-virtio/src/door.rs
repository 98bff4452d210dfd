//! Where a worker is found by a broker that did not start it: a socket with a name, in a directory that only root may enter.
//!
//! The broker that starts a worker makes the door and hands over its inner side. As long as that broker lives nobody
//! comes; when it is gone, the next one knocks.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::channel::Channel;

/// The directory of all doors, in the runtime directory.
const DIRECTORY: &str = "workers";

/// The inner side of a worker's door.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Makes the door of a guest's worker, in the place of one that stands there, and gives its inner side.
    ///
    /// # Errors
    /// The runtime directory cannot be written to.
    pub fn make(runtime: &Path, domid: u16) -> io::Result<Self> {
        directory(runtime)?;
        let path = path(runtime, domid);
        remove(&path)?;
        let socket = socket()?;
        net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        net::listen(&socket, 1)?;
        Ok(Self(socket))
    }

    /// Who has knocked, if anybody has.
    ///
    /// # Errors
    /// The socket fails.
    pub fn open(&self) -> io::Result<Option<Channel>> {
        match net::accept_with(&self.0, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(socket.into())),
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl From<OwnedFd> for Door {
    /// Takes over what another process made with [`Door::make`].
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Knocks at the door of a guest's worker. `None`: nobody lives there any more.
///
/// # Errors
/// It is no door.
pub fn knock(runtime: &Path, domid: u16) -> io::Result<Option<Channel>> {
    let socket = socket()?;
    match net::connect(&socket, &SocketAddrUnix::new(path(runtime, domid))?) {
        Ok(()) => Ok(Some(socket.into())),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the door of a worker away that has ended.
///
/// # Errors
/// It cannot be.
pub fn wall_up(runtime: &Path, domid: u16) -> io::Result<()> {
    remove(&path(runtime, domid))
}

/// Where doors are, and what the broker notes of those behind them.
pub(crate) fn place(runtime: &Path) -> PathBuf {
    runtime.join(DIRECTORY)
}

/// Makes that place, if it is not there.
///
/// # Errors
/// The runtime directory cannot be written to.
pub(crate) fn directory(runtime: &Path) -> io::Result<PathBuf> {
    let directory = place(runtime);
    DirBuilder::new().mode(0o700).recursive(true).create(&directory)?;
    Ok(directory)
}

fn path(runtime: &Path, domid: u16) -> PathBuf {
    place(runtime).join(domid.to_string())
}

/// Never waits: of those who knock one at a time is let in, and others are told at once that they are not.
fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_knocks_talks_with_who_lives_there() {
        let runtime = tempfile::tempdir().unwrap();
        let door = Door::make(runtime.path(), 7).unwrap();
        assert!(door.open().unwrap().is_none());
        let outside = knock(runtime.path(), 7).unwrap().unwrap();
        let inside = door.open().unwrap().unwrap();
        outside.send(&"hello", &[]).unwrap();
        assert_eq!(inside.try_receive::<String>().unwrap().unwrap().0, "hello");
        let directory = fs::metadata(runtime.path().join(DIRECTORY)).unwrap();
        assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn behind_the_door_of_one_that_has_ended_is_nobody_and_the_next_has_its_own() {
        let runtime = tempfile::tempdir().unwrap();
        drop(Door::make(runtime.path(), 7).unwrap());
        assert!(knock(runtime.path(), 7).unwrap().is_none());
        let next = Door::make(runtime.path(), 7).unwrap();
        assert!(knock(runtime.path(), 7).unwrap().is_some());
        assert!(next.open().unwrap().is_some());
        wall_up(runtime.path(), 7).unwrap();
        wall_up(runtime.path(), 7).unwrap();
        assert!(knock(runtime.path(), 7).unwrap().is_none());
    }
}
