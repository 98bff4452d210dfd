//! The host thread: moves bytes between the ports' buffers and their sinks.
//!
//! It lives as long as the device, through resets and while no driver runs, so that what was printed can be read. It
//! waits for its descriptors and its bell, and never inside a system call but for a file.

mod file;
mod null;
mod pty;
mod socket;
mod stdio;
mod stream;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtio_backend::{Fault, Interest, Ready, Watcher, count_failure, guarded};

use crate::port::Port;
use crate::shared::{Shared, Size};
use crate::{Config, ConfigError, Sink};

/// How long the guest may be held up by a reader that takes nothing at all. Long enough for one who has to wait for a
/// processor; a driver may spin meanwhile, which kernels complain of after many seconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// A port's end on the host, as the thread works it.
trait End: Send {
    /// Begins to watch, and to read where nobody has to come first.
    fn start(&mut self, side: &Side<'_>) -> io::Result<()>;

    /// One of its descriptors is ready.
    fn ready(&mut self, _role: u64, _ready: Ready) {}

    /// Somebody has opened a pty.
    fn opened(&mut self, _side: &Side<'_>) {}

    /// Moves what can be moved. True if there is more to do at once.
    fn pump(&mut self, side: &Side<'_>) -> bool;
}

/// The tokens of what is no port's.
const BELL: u64 = u64::MAX;
const OPENINGS: u64 = u64::MAX - 1;

/// Descriptors that a port may have.
const ROLES: u64 = 2;

const READABLE: Interest = Interest { readable: true, writable: false };

/// What a sink needs to know of its port.
struct Side<'a> {
    index: usize,
    port: &'a Port,
    shared: &'a Shared,
    watcher: &'a Watcher,
}

impl Side<'_> {
    fn token(&self, role: u64) -> u64 {
        self.index as u64 * ROLES + role
    }

    /// Somebody reads.
    fn attach(&self) {
        if self.port.attach() {
            self.shared.counters.readers_attached.fetch_add(1, Relaxed);
            self.shared.lane.ring();
        }
    }

    /// Nobody reads any more.
    fn detach(&self) {
        if self.port.detach() {
            self.shared.lane.ring();
        }
    }

    fn put_input(&self, bytes: &[u8]) {
        self.port.put_input(bytes);
        self.shared.lane.ring();
    }

    /// The sink has taken the first `count` bytes of the output it was given.
    fn sent(&self, count: usize) {
        self.shared.counters.bytes_out.fetch_add(count as u64, Relaxed);
        self.done(count);
    }

    /// The sink has failed to take the first `count` bytes of output, and will not be asked again.
    fn lost(&self, count: usize) {
        self.shared.counters.bytes_dropped.fetch_add(count as u64, Relaxed);
        self.done(count);
    }

    fn done(&self, count: usize) {
        if self.port.sent(count) {
            self.shared.lane.ring();
        }
    }

    /// The terminal of this port has this size; of interest for the console alone.
    fn resize(&self, size: Size) {
        if self.index == 0 && size != Size::default() {
            self.shared.resize(size);
        }
    }

    fn note_failure(&self, doing: &'static str, error: &io::Error) {
        if let Some(failures) = count_failure(&self.shared.counters.host_failures) {
            tracing::warn!(name: "console.host_error", port = self.index, doing, %error, failures,
                "The host failed a port of a console");
        }
    }
}

/// The thread's state.
pub(crate) struct Host {
    ends: Vec<Box<dyn End>>,
    openings: Option<OwnedFd>,
    watcher: Watcher,
    shared: Arc<Shared>,
}

impl Host {
    /// Puts configuration and descriptors together; for their order see the module `open`.
    pub(crate) fn new(config: &Config, descriptors: Vec<OwnedFd>, shared: Arc<Shared>) -> Result<Self, ConfigError> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(ConfigError::Descriptors);
        let mut ends: Vec<Box<dyn End>> = Vec::new();
        for port in &config.ports {
            ends.push(match port.sink {
                Sink::Pty => Box::new(pty::Pty::new(next()?)),
                Sink::Socket => Box::new(socket::Socket::new(next()?)),
                Sink::File => Box::new(file::LogFile::new(next()?, next()?, port.file_limit())),
                Sink::Stdio => Box::new(stdio::Stdio::new(next()?, next()?)),
                Sink::Null => Box::new(null::Null),
            });
        }
        let openings = config.ports.iter().any(|port| port.sink == Sink::Pty).then(&mut next).transpose()?;
        if descriptors.next().is_some() {
            return Err(ConfigError::Descriptors);
        }
        Ok(Self { ends, openings, watcher: Watcher::new().map_err(ConfigError::Thread)?, shared })
    }

    /// Starts the thread.
    pub(crate) fn spawn(mut self) -> Result<JoinHandle<()>, ConfigError> {
        self.start().map_err(ConfigError::Thread)?;
        let run = move || {
            let shared = Arc::clone(&self.shared);
            let served = guarded(move || {
                self.run().map_err(|source| Fault::Host { doing: "waiting for a console's readers", source })
            });
            if let Err(fault) = served {
                shared.fail(&fault);
            }
        };
        thread::Builder::new().name("console".to_owned()).spawn(run).map_err(ConfigError::Thread)
    }

    fn start(&mut self) -> io::Result<()> {
        self.watcher.add(&self.shared.host, BELL, READABLE)?;
        if let Some(openings) = &self.openings {
            self.watcher.add(openings, OPENINGS, READABLE)?;
        }
        self.for_each(|end, side| end.start(side)).into_iter().collect()
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let more = self.for_each(|end, side| end.pump(side)).contains(&true);
            if self.shared.stops() && !more {
                return Ok(());
            }
            let until_patience_ends = self.give_up_on_stalled_readers();
            self.wait(if more { Some(Duration::ZERO) } else { until_patience_ends })?;
            self.dispatch()?;
        }
    }

    /// Returns how long it may be until the next has to be given up on.
    fn give_up_on_stalled_readers(&self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        for port in &self.shared.ports {
            let Some(since) = port.waiting_since() else { continue };
            let left = PATIENCE.saturating_sub(since.elapsed());
            if left.is_zero() {
                port.give_up_on_reader();
                self.shared.lane.ring();
            } else {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut [PollFd::new(&self.watcher, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn dispatch(&mut self) -> io::Result<()> {
        let mut opened = false;
        for ready in self.watcher.ready()? {
            match ready.token {
                BELL => self.shared.host.silence(),
                OPENINGS => opened = true,
                token => {
                    let index = usize::try_from(token / ROLES).unwrap_or(usize::MAX);
                    if let Some(end) = self.ends.get_mut(index) {
                        end.ready(token % ROLES, ready);
                    }
                }
            }
        }
        // Last: that a pty was closed may be old news when it was opened again.
        if let Some(openings) = self.openings.as_ref().filter(|_| opened) {
            drain(openings);
            self.for_each(|end, side| end.opened(side));
        }
        Ok(())
    }

    fn for_each<T>(&mut self, mut act: impl FnMut(&mut dyn End, &Side<'_>) -> T) -> Vec<T> {
        let Self { ends, watcher, shared, .. } = self;
        let ends = ends.iter_mut().zip(&shared.ports).enumerate();
        ends.map(|(index, (end, port))| act(&mut **end, &Side { index, port, shared, watcher })).collect()
    }
}

/// Which pty it was does not matter: they are few, and looking is cheap.
fn drain(openings: impl AsFd) {
    let mut events = [0; 4096];
    while rustix::io::read(&openings, &mut events).is_ok_and(|count| count > 0) {}
}
