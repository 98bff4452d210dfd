//! Files of output.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open as open_file};
use rustix::io::Errno;

use super::failed;
use crate::ConfigError;

/// Opens a file, made if it is not there, and the one that its contents are moved to when it is full. A link is not
/// followed: whoever may write to the directory could point it at anything.
pub(super) fn open(path: &Path) -> Result<[OwnedFd; 2], ConfigError> {
    let mut previous = path.as_os_str().to_owned();
    previous.push(".1");
    Ok([open_one(path, OFlags::APPEND)?, open_one(&PathBuf::from(previous), OFlags::empty())?])
}

fn open_one(path: &Path, flags: OFlags) -> Result<OwnedFd, ConfigError> {
    let occupied = || ConfigError::Occupied { path: path.to_owned(), wanted: "regular file" };
    // Not to wait for the other end of a FIFO, which is then refused.
    let flags = flags | OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open_file(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(occupied()),
        Err(errno) => return Err(failed("open the file", path, errno.into())),
    };
    let status = fstat(&file).map_err(|errno| failed("look at", path, errno.into()))?;
    if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile { Ok(file) } else { Err(occupied()) }
}
