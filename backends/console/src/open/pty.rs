//! Pseudo-terminals.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::ConfigError;
use crate::shared::Size;

/// Opens a pty that passes bytes as they are. Returns its master and the name of its terminal.
pub(super) fn open(size: Option<Size>) -> Result<(OwnedFd, PathBuf), ConfigError> {
    let failed = |doing| move |errno: Errno| ConfigError::Pty { doing, source: errno.into() };
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(failed("open a pty"))?;
    grantpt(&master).and_then(|()| unlockpt(&master)).map_err(failed("unlock a pty"))?;
    let name = ptsname(&master, Vec::new()).map_err(failed("learn the name of a pty"))?;
    fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).map_err(failed("set up a pty"))?;
    // From now on the terminal has been closed, which the master reports until a reader opens it.
    let terminal = ioctl_tiocgptpeer(&master, flags).map_err(failed("open the terminal of a pty"))?;
    let mut settings = tcgetattr(&terminal).map_err(failed("set up a pty"))?;
    settings.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &settings).map_err(failed("set up a pty"))?;
    if let Some(Size { cols, rows }) = size {
        let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).map_err(failed("set the size of a pty"))?;
    }
    Ok((master, OsString::from_vec(name.into_bytes()).into()))
}
