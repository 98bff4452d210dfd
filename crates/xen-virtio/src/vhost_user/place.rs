//! The socket: made here, or handed over by whoever started us.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, anyhow, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::failure::Failure;
use crate::process::duplicate;

/// Where front-ends are to connect.
pub(super) enum Place {
    /// A socket that is to be made, by its absolute path.
    Path(PathBuf),
    /// One that listens already.
    Inherited(UnixListener),
}

/// A socket's name that was made here. Taken away when dropped, unless another stands in its place by then.
pub(super) struct Made {
    path: PathBuf,
    inode: (u64, u64),
}

impl Place {
    /// The one place that the command line or the service manager names.
    ///
    /// # Errors
    /// There is none, or more than one, or it is no listening socket.
    pub(super) fn choose(path: Option<&Path>, number: Option<RawFd>) -> anyhow::Result<Self> {
        let activated = sd_notify::listen_fds().context("The service manager's LISTEN_FDS makes no sense")?;
        let activated: Vec<_> = activated.collect();
        match (path, number, activated.as_slice()) {
            (Some(path), None, []) => Ok(Self::Path(absolute(path).context("--socket PATH cannot be used")?)),
            (None, Some(number), []) => inherited(number).map(Self::Inherited),
            (None, None, [number]) => inherited(*number).map(Self::Inherited),
            (None, None, []) => bail!(
                "There is no socket to serve on: give --socket PATH, or --fd N, or start it by a socket unit of systemd"
            ),
            (None, None, several) => bail!(
                "systemd handed over {} sockets, and a device has one: leave one ListenStream= in the socket unit",
                several.len()
            ),
            _ => bail!("--socket, --fd and systemd's socket activation exclude each other: keep one of them"),
        }
    }

    /// The socket's absolute path, if it has one.
    pub(super) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Path(path) => Some(path.clone()),
            Self::Inherited(listener) => absolute(listener.local_addr().ok()?.as_pathname()?).ok(),
        }
    }

    /// Listens there.
    ///
    /// # Errors
    /// Somebody else does, or the host does not allow it.
    pub(super) fn listen(self) -> Result<(UnixListener, Option<Made>), Failure> {
        let path = match self {
            Self::Inherited(listener) => return Ok((listener, None)),
            Self::Path(path) => path,
        };
        let bound = match UnixListener::bind(&path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_leftover(&path)?;
                UnixListener::bind(&path)
            }
            outcome => outcome,
        };
        let failed = || format!("Cannot listen on {}", path.display());
        let listener = bound.with_context(failed)?;
        let inode = inode(&path).with_context(failed)?;
        Ok((listener, Some(Made { path, inode })))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|there| there == self.inode) {
            // Whoever starts next on this socket removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What tells a file from another of its name.
fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let there = fs::symlink_metadata(path)?;
    Ok((there.dev(), there.ino()))
}

/// Removes a socket on which nobody listens any more.
fn remove_leftover(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let failed = || format!("Cannot replace {shown}");
    if !fs::symlink_metadata(path).with_context(failed)?.file_type().is_socket() {
        let why = anyhow!("{shown} is there, and is no socket: remove it, or choose another name by --socket");
        return Err(Failure::Usage(why));
    }
    match somebody_listens(path).with_context(failed)? {
        true => Err(Failure::Usage(anyhow!(
            "Somebody serves on {shown} already: stop that first, or choose another socket"
        ))),
        false => Ok(fs::remove_file(path).with_context(failed)?),
    }
}

/// Never waits: of one that has no room for us it is known all the same.
fn somebody_listens(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let here = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&here, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The listening socket that was handed over with this number.
fn inherited(number: RawFd) -> anyhow::Result<UnixListener> {
    let descriptor = duplicate(number).with_context(|| format!("Cannot use descriptor {number}"))?;
    let is_stream =
        socket_domain(&descriptor) == Ok(AddressFamily::UNIX) && socket_type(&descriptor) == Ok(SocketType::STREAM);
    if !is_stream || socket_acceptconn(&descriptor) != Ok(true) {
        bail!(
            "Descriptor {number} is no unix stream socket that listens: hand over one on which listen(2) was called, \
             and not a connection"
        );
    }
    Ok(descriptor.into())
}
