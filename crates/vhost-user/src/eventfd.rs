//! Descriptors that a front-end sends to notify and to be notified by.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

/// Takes an eventfd; nothing else will do. To be told of data in a file or a pipe, or to write to one, can block for as
/// long as the front-end likes.
///
/// # Errors
/// It is a file, a socket, a pipe or a device.
pub(crate) fn check(file: File) -> io::Result<OwnedFd> {
    // What lies in no file system has no type. Other such descriptors than eventfds fail a write without blocking.
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::Unknown {
        return Err(io::Error::other("The descriptor to notify by is no eventfd"));
    }
    Ok(file.into())
}

/// Takes an eventfd to write to, and sees to it that a write does not block if nobody has read 2^64-2 earlier ones.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_writable(file: File) -> io::Result<OwnedFd> {
    let eventfd = check(file)?;
    fcntl_setfl(&eventfd, fcntl_getfl(&eventfd)? | OFlags::NONBLOCK)?;
    Ok(eventfd)
}

/// Notifies whoever listens to an eventfd of [`check_writable`].
pub(crate) fn signal(eventfd: &OwnedFd) {
    // It fails if the eventfd is full, and then whoever listens has been notified.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn an_eventfd_is_told_from_files_pipes_and_sockets() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (read, write) = pipe().unwrap();
        assert!(check(event.into()).is_ok());
        for foul in [tempfile::tempfile().unwrap(), OwnedFd::from(socket).into(), read.into(), write.into()] {
            assert!(check(foul).is_err());
        }
    }

    #[test]
    fn a_full_eventfd_does_not_block_who_signals() {
        let event = check_writable(eventfd(0, EventfdFlags::CLOEXEC).unwrap().into()).unwrap();
        rustix::io::write(event.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signal(&event);
    }
}
