//! The program's standard input and output.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open as open_file};

use crate::ConfigError;

/// Opens them anew: whether a description waits is a property that other programs share it with.
pub(super) fn open() -> Result<[OwnedFd; 2], ConfigError> {
    Ok([
        open_one("input", "/proc/self/fd/0", OFlags::RDONLY)?,
        open_one("output", "/proc/self/fd/1", OFlags::WRONLY | OFlags::APPEND)?,
    ])
}

fn open_one(which: &'static str, path: &str, flags: OFlags) -> Result<OwnedFd, ConfigError> {
    open_file(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ConfigError::NoStdio { which, source: errno.into() })
}
