//! One visit to a port: bytes both ways until one side has enough.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::place::End;
use super::terminal;

/// Ctrl-], by which a person leaves, as with `xl console`.
const LEAVE: u8 = 0x1d;

/// Input that the guest has not taken yet. A pipe waits then; what a person types beyond is lost.
const MOST_PENDING: usize = 64 << 10;

/// Where standard input has ended and is no terminal: how long nothing may come before that was all.
const QUIET: Duration = Duration::from_secs(1);

/// How a visit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By the visitor: Ctrl-], the end of a pipe, or nobody who reads any more.
    Left,
    /// The other end is gone.
    ByGuest,
    /// The other end was gone at once.
    TurnedAway,
    /// A signal.
    Signal,
}

/// See the module.
pub(super) struct Session {
    end: AsyncFd<OwnedFd>,
    /// Of a pseudo-terminal.
    terminal: Option<PathBuf>,
    /// Input on its way to the guest.
    pending: Vec<u8>,
    has_heard: bool,
}

impl Session {
    /// Opens the port.
    ///
    /// # Errors
    /// It cannot be opened, or someone else has it open.
    pub(super) fn begin(end: &End) -> anyhow::Result<Self> {
        let (fd, terminal) = match end {
            End::Terminal(path) => (open_terminal(path)?, Some(path.clone())),
            End::Socket(path) => (connect(path)?, None),
        };
        let end = register(fd).context("Cannot wait for the console")?;
        Ok(Self { end, terminal, pending: Vec::new(), has_heard: false })
    }

    /// Until the end. `input` ends where standard input does.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub(super) async fn run(mut self, mut input: mpsc::Receiver<Vec<u8>>, is_person: bool) -> anyhow::Result<Ended> {
        let catch = |kind| signal(kind).context("Cannot catch signals");
        let mut resized = catch(SignalKind::window_change())?;
        let mut terminated = catch(SignalKind::terminate())?;
        let mut hung_up = catch(SignalKind::hangup())?;
        let mut interrupted = catch(SignalKind::interrupt())?;
        let mut quit = catch(SignalKind::quit())?;
        self.pass_size_on();
        let mut has_input = true;
        let mut quiet_at = Instant::now() + QUIET;
        let mut output = [0; 4096];
        loop {
            let takes_input = has_input && (is_person || self.pending.len() < MOST_PENDING);
            let may_be_done = !has_input && self.pending.is_empty();
            tokio::select! {
                read = self.end.async_io(Interest::READABLE, |end| Ok(rustix::io::read(end, &mut output)?)) => {
                    let Some(bytes) = read.ok().and_then(|count| output.get(..count)).filter(|bytes| !bytes.is_empty())
                    else {
                        return Ok(self.gone());
                    };
                    self.has_heard = true;
                    quiet_at = Instant::now() + QUIET;
                    if print(bytes).is_err() {
                        return Ok(Ended::Left);
                    }
                }
                written = self.end.async_io(Interest::WRITABLE, |end| Ok(rustix::io::write(end, &self.pending)?)),
                    if !self.pending.is_empty() =>
                {
                    let Ok(count) = written else { return Ok(self.gone()) };
                    self.pending.drain(..count);
                    quiet_at = Instant::now() + QUIET;
                }
                bytes = input.recv(), if takes_input => match bytes {
                    Some(bytes) if self.take(&bytes, is_person) => return Ok(Ended::Left),
                    Some(_) => {}
                    // A terminal that is gone has nobody who waits for output.
                    None if is_person => return Ok(Ended::Left),
                    None => {
                        has_input = false;
                        quiet_at = Instant::now() + QUIET;
                    }
                },
                () = sleep_until(quiet_at), if may_be_done => return Ok(Ended::Left),
                _ = resized.recv() => self.pass_size_on(),
                _ = terminated.recv() => return Ok(Ended::Signal),
                _ = hung_up.recv() => return Ok(Ended::Signal),
                _ = interrupted.recv() => return Ok(Ended::Signal),
                _ = quit.recv() => return Ok(Ended::Signal),
            }
        }
    }

    /// Takes input; true if it is the wish to leave.
    fn take(&mut self, bytes: &[u8], is_person: bool) -> bool {
        let leaves_at = bytes.iter().position(|byte| is_person && *byte == LEAVE);
        let room = if is_person { MOST_PENDING.saturating_sub(self.pending.len()) } else { usize::MAX };
        self.pending.extend(bytes.iter().take(leaves_at.unwrap_or(bytes.len()).min(room)));
        leaves_at.is_some()
    }

    fn gone(&self) -> Ended {
        let is_socket = self.terminal.is_none();
        if is_socket && !self.has_heard { Ended::TurnedAway } else { Ended::ByGuest }
    }

    /// Gives the guest's terminal the size of ours.
    fn pass_size_on(&self) {
        if let (Some(path), Some(size)) = (&self.terminal, terminal::size()) {
            // Nothing tells the device of a new size, but it looks when its terminal is opened once more.
            let _ = tcsetwinsize(self.end.get_ref(), size).and_then(|()| open_once(path));
        }
    }
}

fn open_terminal(path: &Path) -> anyhow::Result<OwnedFd> {
    let cannot = |errno: Errno| anyhow!(io::Error::from(errno)).context(format!("Cannot open {}", path.display()));
    let terminal = open_once(path).map_err(cannot)?;
    match flock(&terminal, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => bail!("Another `xen-virtio console` has this port open; each would see half of it"),
        locked => locked.map_err(cannot)?,
    }
    // As the device has made it, if another program has changed it since.
    let mut settings = tcgetattr(&terminal).map_err(cannot)?;
    settings.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &settings).map_err(cannot)?;
    Ok(terminal)
}

fn open_once(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn connect(path: &Path) -> anyhow::Result<OwnedFd> {
    let stream = UnixStream::connect(path).and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
    let stream = stream.with_context(|| {
        format!("Cannot connect to {}; if nobody listens there, the guest's device has gone", path.display())
    })?;
    Ok(stream.into())
}

#[expect(
    deprecated,
    reason = "deprecated for types that may change or close their descriptor, which OwnedFd cannot; its replacement is \
              unsafe, and this crate has no unsafe code"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Blocks where the terminal does: what it cannot show is not worth reading.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(bytes)?;
    output.flush()
}
