//! A device behind a listening socket: one front-end after the other.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use virtio_backend::{Backend, Bell};

use crate::connection;
use crate::device::Device;

/// A device behind a listening socket.
pub struct Server {
    device: Arc<Device>,
    listener: UnixListener,
    stop: Arc<Stop>,
}

/// Stops a [`Server`], from any thread and at any time, also before it serves.
#[derive(Clone)]
pub struct Stopper(Arc<Stop>);

impl Server {
    /// Puts `backend` behind `listener`. `name` is for log lines and for the names of threads.
    ///
    /// # Errors
    /// The process has no more descriptors.
    pub fn new(name: &str, backend: Arc<dyn Backend>, listener: UnixListener) -> io::Result<Self> {
        // A connection that was given up before it is accepted must not make us wait for the next.
        listener.set_nonblocking(true)?;
        let stop = Stop { is_asked_for: AtomicBool::new(false), bell: Bell::new()?, connection: Mutex::default() };
        Ok(Self { device: Arc::new(Device::new(name, backend)), listener, stop: Arc::new(stop) })
    }

    /// The way to stop it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves one front-end after the other, on the calling thread, until stopped; who connects meanwhile waits. When
    /// it returns nothing is in flight any more.
    ///
    /// # Errors
    /// The socket does not listen any more, or the process has no more descriptors.
    pub fn serve(self) -> io::Result<()> {
        while self.stop.wait_for(&self.listener, PollFlags::IN).is_ok() {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            let socket = Arc::new(socket);
            self.stop.enter(socket.clone());
            let served = connection::serve(&self.device, &socket, &self.stop);
            self.stop.leave();
            served?;
        }
        Ok(())
    }
}

/// Whether an error of accept(2) is of one connection alone.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

impl Stopper {
    /// Makes [`Server::serve`] finish what is in flight and return. Does not wait for it.
    pub fn stop(&self) {
        self.0.ask();
    }
}

/// What a stopper and the serving thread share.
pub(crate) struct Stop {
    is_asked_for: AtomicBool,
    /// Rung once for all.
    bell: Bell,
    /// The connection that is being served.
    connection: Mutex<Option<Arc<UnixStream>>>,
}

/// The device is to stop.
pub(crate) struct Stopped;

impl Stop {
    pub(crate) fn is_asked_for(&self) -> bool {
        self.is_asked_for.load(Ordering::Acquire)
    }

    /// Waits until a socket is ready, or has failed.
    pub(crate) fn wait_for(&self, socket: &impl AsFd, side: PollFlags) -> Result<(), Stopped> {
        loop {
            let mut ready = [PollFd::new(socket, side), PollFd::new(&self.bell, PollFlags::IN)];
            let polled = poll(&mut ready, None);
            if self.is_asked_for() {
                return Err(Stopped);
            }
            // Out of memory is the one other error that can be; the read that follows will say what is wrong.
            if polled != Err(Errno::INTR) {
                return Ok(());
            }
        }
    }

    fn ask(&self) {
        self.is_asked_for.store(true, Ordering::Release);
        self.bell.ring();
        // A front-end that stays in the middle of a message must not keep us there. It sees nothing of this as long as
        // it sends nothing.
        if let Some(connection) = &*self.connection() {
            let _ = connection.shutdown(Shutdown::Read);
        }
    }

    /// Begins to serve a connection.
    fn enter(&self, socket: Arc<UnixStream>) {
        *self.connection() = Some(socket);
    }

    fn leave(&self) {
        *self.connection() = None;
    }

    fn connection(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
