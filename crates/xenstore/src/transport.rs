//! Where xenstored is, and bytes to and from it.
//!
//! A Unix socket where xenstored is a process of this domain; the kernel's xenbus device in a driver domain, and in
//! Dom0 when xenstored has a domain of its own. Both are non-blocking descriptors in tokio's epoll.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::wire::{HEADER_LEN, PAYLOAD_MAX};

/// Read at most this much at once: a few messages of the largest size.
const READ_CHUNK: usize = 16 * 1024;
/// Most bytes of a message, its header included, that the kernel's device takes (`struct xenbus_file_priv`).
const XENBUS_MESSAGE_MAX: usize = 4096;

/// A place where a xenstored can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The Unix socket of a xenstored in this domain.
    Socket(PathBuf),
    /// The kernel's device, which passes messages to a xenstored in another domain.
    Xenbus(PathBuf),
}

impl Address {
    /// The places to try, in order: the socket `$XENSTORED_PATH` and nothing else, if that is set; else
    /// `${XENSTORED_RUNDIR:-/run/xenstored}/socket`, `/dev/xen/xenbus`, `/proc/xen/xenbus`.
    #[must_use]
    pub fn candidates() -> Vec<Self> {
        Self::candidates_in(env::var_os("XENSTORED_PATH"), env::var_os("XENSTORED_RUNDIR"))
    }

    fn candidates_in(path: Option<OsString>, rundir: Option<OsString>) -> Vec<Self> {
        if let Some(path) = path {
            return vec![Self::Socket(path.into())];
        }
        let rundir = rundir.map_or_else(|| PathBuf::from("/run/xenstored"), PathBuf::from);
        vec![
            Self::Socket(rundir.join("socket")),
            Self::Xenbus("/dev/xen/xenbus".into()),
            Self::Xenbus("/proc/xen/xenbus".into()),
        ]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Socket(path) | Self::Xenbus(path)) = self;
        path.display().fmt(f)
    }
}

/// An open way to xenstored.
pub(crate) struct Transport {
    fd: AsyncFd<OwnedFd>,
    way: Way,
}

/// What is on the other side of the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Socket,
    /// The kernel. Its poll never reports POLLOUT: it takes each write at once, does what it asks, and fails if that
    /// does. For watches it waits for xenstored's answer meanwhile (drivers/xen/xenbus/xenbus_dev_frontend.c).
    Xenbus,
}

impl Transport {
    pub(crate) async fn open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Socket(path) => {
                let stream = UnixStream::connect(path).await?.into_std()?;
                let fd = register(stream.into(), Interest::READABLE | Interest::WRITABLE)?;
                Ok(Self { fd, way: Way::Socket })
            }
            Address::Xenbus(path) => {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let device = rustix::fs::open(path, flags, Mode::empty())?;
                Self::over_xenbus(device)
            }
        }
    }

    pub(crate) fn over_xenbus(device: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: register(device, Interest::READABLE)?, way: Way::Xenbus })
    }

    /// Most bytes of a message, its header included.
    pub(crate) fn message_max(&self) -> usize {
        match self.way {
            Way::Socket => HEADER_LEN + PAYLOAD_MAX,
            Way::Xenbus => XENBUS_MESSAGE_MAX,
        }
    }

    /// Whether a write that fails means that its one message was refused, and no more than that.
    pub(crate) fn refuses_by_failing(&self) -> bool {
        self.way == Way::Xenbus
    }

    /// Whether a request has to be answered before the next is written. The kernel sends a request some time after the
    /// write, out of a buffer of the descriptor that the next write overwrites (`xenbus_dev_request_and_reply`).
    pub(crate) fn takes_one_at_a_time(&self) -> bool {
        self.way == Way::Xenbus
    }

    /// Waits until there is something to read, or, if `to_write`, room to write.
    pub(crate) async fn ready(&self, to_write: bool) -> io::Result<()> {
        let interest = if to_write && self.way == Way::Socket {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        self.fd.ready(interest).await?.retain_ready();
        Ok(())
    }

    /// Appends what has arrived to `inbox`: the number of bytes (0 at the end of the connection), or `None` when there
    /// is nothing yet.
    pub(crate) fn try_read(&self, inbox: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let mut chunk = [0; READ_CHUNK];
        let read = self.fd.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut chunk)?));
        let len = would_block_to_none(read)?;
        inbox.extend_from_slice(chunk.get(..len.unwrap_or(0)).unwrap_or_default());
        Ok(len)
    }

    /// Writes a part of one message: how many bytes were taken, or `None` when there is no room.
    pub(crate) fn try_write(&self, message: &[u8]) -> io::Result<Option<usize>> {
        match self.way {
            Way::Socket => {
                would_block_to_none(self.fd.try_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, message)?)))
            }
            Way::Xenbus => Ok(Some(rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, message))?)),
        }
    }
}

#[expect(
    deprecated,
    reason = "deprecated for types that may change or close their descriptor, which OwnedFd cannot; its replacement is \
              unsafe, and this crate has no unsafe code"
)]
fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

fn would_block_to_none(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_path_is_the_only_candidate() {
        let candidates = Address::candidates_in(Some("/tmp/s".into()), Some("/tmp/run".into()));

        assert_eq!(candidates, [Address::Socket("/tmp/s".into())]);
    }

    #[test]
    fn the_socket_comes_before_the_kernels_devices() {
        let default = Address::candidates_in(None, None);
        let moved = Address::candidates_in(None, Some("/tmp/run".into()));

        assert_eq!(default.first(), Some(&Address::Socket("/run/xenstored/socket".into())));
        assert_eq!(moved.first(), Some(&Address::Socket("/tmp/run/socket".into())));
        assert_eq!(
            default[1..],
            [Address::Xenbus("/dev/xen/xenbus".into()), Address::Xenbus("/proc/xen/xenbus".into())]
        );
    }
}
