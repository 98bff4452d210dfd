//! A device behind a listening socket: one front-end after the other.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
        let stop = Arc::new(Stop(Bell::new()?));
        Ok(Self { device: Arc::new(Device::new(name, backend)), listener, stop })
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
            connection::serve(&self.device, socket, &self.stop)?;
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
        self.0.0.ring();
    }
}

/// What a stopper and the serving thread share: a bell that is rung once for all.
pub(crate) struct Stop(Bell);

/// The device is to stop.
pub(crate) struct Stopped;

impl Stop {
    /// Waits until a socket is ready on one of these sides, or has failed; returns what it is.
    pub(crate) fn wait_for(&self, socket: &impl AsFd, sides: PollFlags) -> Result<PollFlags, Stopped> {
        let mut sockets = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(socket, sides)];
        loop {
            let polled = poll(&mut sockets, None);
            let [bell, socket] = sockets.each_ref().map(PollFd::revents);
            match polled {
                Ok(_) if !bell.is_empty() => return Err(Stopped),
                Ok(_) => return Ok(socket),
                Err(Errno::INTR) => {}
                // The kernel is out of memory: what is done with the socket next will say so.
                Err(_) => return Ok(PollFlags::ERR),
            }
        }
    }

    /// Waits for some milliseconds.
    pub(crate) fn pause(&self, milliseconds: u32) -> Result<(), Stopped> {
        let time = Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
        let polled = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time));
        if polled.is_ok_and(|rung| rung > 0) { Err(Stopped) } else { Ok(()) }
    }
}
