//! What the device and its worker of the moment share.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use virtio_backend::{Bell, Reach, Record, Signals};

use crate::asking::Asking;
use crate::config::{Found, Plan};
use crate::config_space::ConfigSpace;
use crate::connection::Connection;
use crate::counters::Counters;
use crate::introduction::own;
use crate::kept;
use crate::layout::Layout;

/// What outlives a reset.
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) found: Found,
    pub(crate) layout: Layout,
    pub(crate) config: ConfigSpace,
    /// Rung when there is something for the worker to do of which no kick and no call tells.
    pub(crate) bell: Arc<Bell>,
    /// The way to a connection in the place of one that is gone.
    pub(crate) asking: Asking,
    pub(crate) counters: Arc<Counters>,
    pub(crate) noted: kept::Kept,
    /// The connection that this process was handed, until it is found useless. Others may have its descriptor, too.
    handed: Mutex<Option<OwnedFd>>,
    signals: OnceLock<Arc<dyn Signals>>,
    /// The connection while no worker has it. A worker that ends and the next one meet here.
    kept: Mutex<Option<Kept>>,
}

/// A connection to the backend that nobody works with.
pub(crate) enum Kept {
    /// It was made by another process, and only its beginning has been said.
    New(OwnedFd),
    /// A process that died has worked with it.
    Left(OwnedFd),
    /// It was in use until the driver reset the device.
    Used(Connection),
}

impl Shared {
    pub(crate) fn new(
        plan: Plan,
        found: Found,
        layout: Layout,
        connection: OwnedFd,
        reach: Arc<dyn Reach>,
    ) -> io::Result<Self> {
        let config = ConfigSpace::new(found.config.clone(), own(&plan, found.queues));
        let handed = Mutex::new(Some(connection.try_clone()?));
        let kept = Mutex::new(Some(Kept::New(connection)));
        let bell = Arc::new(Bell::new()?);
        let asking = Asking::new(reach, Arc::clone(&bell));
        let (counters, noted, signals) = (Arc::default(), kept::Kept::default(), OnceLock::new());
        Ok(Self { plan, found, layout, config, bell, asking, counters, noted, handed, signals, kept })
    }

    /// Keeps in `record` what the process that follows must know, and goes on with what a former one has kept.
    pub(crate) fn keep(&self, record: &Record) {
        let Some(noted) = self.noted.keep(record) else { return };
        noted.written.iter().for_each(|(offset, bytes)| self.config.write(*offset, bytes));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = kept.take().map(|kept| if let Kept::New(socket) = kept { Kept::Left(socket) } else { kept });
    }

    /// Ends the connection that this process was handed, if that is the one which was given up: a backend that serves a
    /// single one otherwise sees no end of it as long as anybody has its descriptor.
    pub(crate) fn end_handed(&self) {
        if let Some(socket) = self.handed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The other end may have been faster.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }

    pub(crate) fn attach(&self, signals: Arc<dyn Signals>) {
        // It is said once.
        let _ = self.signals.set(signals);
    }

    pub(crate) fn config_changed(&self) {
        if let Some(signals) = self.signals.get() {
            signals.config_changed();
        }
    }

    pub(crate) fn take_connection(&self) -> Option<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn keep_connection(&self, connection: Connection) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(Kept::Used(connection));
    }
}
