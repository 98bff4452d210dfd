//! An export, opened: first as sockets that know what it is, then as the storage of a disk.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{Shutdown, shutdown};
use virtio_backend::Reach;

use crate::engine::{Engine, Op};
use crate::{EngineKind, Geometry, Storage};

use super::counters::CountersSnapshot;
use super::dial::dial;
use super::dialer::{Caller, Connected, Dialer, PATIENCE};
use super::engine::NbdEngine;
use super::export::Export;
use super::patient::Deadline;
use super::shared::{Patience, Shared};
use super::uri::Address;
use super::{NbdError, handshake};

/// An export that has been looked at, and not begun with: its connections can go to another process, which
/// [begins](Nbd::begin).
#[derive(Debug)]
pub struct Candidate {
    address: Address,
    name: String,
    export: Export,
    sockets: Vec<OwnedFd>,
}

impl Candidate {
    /// Connects to the server and asks for the export. May take seconds.
    ///
    /// # Errors
    /// There is no such server or export, or it is no disk; the message says what to do.
    pub fn look(address: Address) -> Result<Self, NbdError> {
        let (socket, export) = look(&address, Deadline::after(PATIENCE))?;
        Ok(Self { name: address.to_string(), address, export, sockets: vec![socket] })
    }

    /// What the server says of it.
    pub fn export(&self) -> Export {
        self.export
    }

    /// Its sockets, with so many more connections that there is one for each of `lanes`. May take seconds.
    ///
    /// # Errors
    /// The server does not take as many.
    pub fn into_sockets(mut self, lanes: u16) -> Result<Vec<OwnedFd>, NbdError> {
        let deadline = Deadline::after(PATIENCE);
        while self.sockets.len() < usize::from(lanes) {
            self.sockets.push(look(&self.address, deadline)?.0);
        }
        self.sockets.iter().try_for_each(leave).map_err(NbdError::Host)?;
        Ok(self.sockets)
    }
}

/// To plan a disk with, and no more.
impl Storage for Candidate {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.export.geometry()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.export.size)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn open_engine(&self, _kind: EngineKind, _depth: u16) -> io::Result<Box<dyn Engine>> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// Leaves a connection to whoever [takes](take) it first. Nobody works with a socket that blocks, so that says that nobody
/// does as yet: of all that a socket is, its flags are what each process sees that it is passed to.
fn leave(socket: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(socket, fcntl_getfl(socket)? - OFlags::NONBLOCK)?)
}

/// Takes a connection that was [left](leave), before a byte of ours goes over it; false if another process has taken it. That
/// one may have died in the middle of a request, so it is ended then.
fn take(socket: &OwnedFd) -> io::Result<bool> {
    let flags = fcntl_getfl(socket)?;
    if flags.contains(OFlags::NONBLOCK) {
        // It may have ended by itself.
        let _ = shutdown(socket, Shutdown::Both);
        return Ok(false);
    }
    fcntl_setfl(socket, flags | OFlags::NONBLOCK)?;
    Ok(true)
}

fn look(address: &Address, deadline: Deadline) -> Result<(OwnedFd, Export), NbdError> {
    let socket = handshake::greet(dial(address, deadline)?, deadline)?;
    handshake::look(socket, &address.export, deadline)
}

/// An export as the storage of a disk.
pub struct Nbd {
    name: String,
    shared: Arc<Shared>,
}

impl Nbd {
    /// Begins with the connections of a [`Candidate`] for this address, whose export was `found`. In the place of those that
    /// a former process had, its lanes ask `reach` for new ones, and wait for them. May take seconds.
    ///
    /// # Errors
    /// The server is gone since, or the export has changed; there is no socket; the host has no thread.
    pub fn begin(
        address: Address,
        patience: Patience,
        sockets: Vec<OwnedFd>,
        found: Export,
        reach: Arc<dyn Reach>,
    ) -> Result<Self, NbdError> {
        if sockets.is_empty() {
            return Err(NbdError::Host(io::ErrorKind::NotConnected.into()));
        }
        let (several, deadline) = (sockets.len() > 1, Deadline::after(PATIENCE));
        let mut connections = Vec::<Connected>::new();
        for socket in sockets {
            if !take(&socket).map_err(NbdError::Host)? {
                continue;
            }
            let (socket, export) = handshake::begin(socket, &address.export, deadline)?;
            if let Some(first) = connections.first() {
                export.replaces(&first.export, several)?;
            }
            connections.push(Connected { socket, export });
        }
        let export = connections.first().map_or(found, |first| first.export);
        let caller = Caller { address: address.clone(), reach, expected: export, several };
        let dialer = Dialer::new(caller).map_err(NbdError::Host)?;
        let name = address.to_string();
        if !export.can_flush() {
            tracing::warn!(
                name: "disk.nbd_no_flush", image = name,
                "The NBD server knows no flush: what it has acknowledged may be lost when it crashes"
            );
        }
        Ok(Self { name, shared: Arc::new(Shared::new(address, patience, connections, dialer, export)) })
    }
}

impl Storage for Nbd {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.shared.export.geometry()
    }

    /// The protocol has no word for growth: a connection keeps the size it began with.
    fn size(&self) -> io::Result<u64> {
        Ok(self.shared.export.size)
    }

    fn flush(&self) -> io::Result<()> {
        let mut engine = NbdEngine::new(Arc::clone(&self.shared), 1)?;
        engine.submit(0, Op::Flush)?;
        engine.wait()?;
        engine.reap().map_or(Err(io::ErrorKind::TimedOut.into()), |done| done.result)
    }

    fn open_engine(&self, _kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(NbdEngine::new(Arc::clone(&self.shared), depth)?))
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        CountersSnapshot::pairs(&self.shared.counters.snapshot())
    }
}
