//! Starting a worker: a fresh process of this very binary.
//!
//! It inherits nothing but a socket as standard input and the log as standard error; the devices of Xen are sent over
//! the socket, and are restricted to the guest before they are: not even a worker's first instruction can reach more.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use xen_ioctls::{DeviceModel, DomId, EventChannels, Gntdev, Kind, Privcmd};

use super::worker::{Spawned, Spawner};
use crate::channel::Channel;
use crate::cli::LOG_VARIABLE;
use crate::protocol::{Order, VERSION};

/// What this process runs, even if the file has been replaced since.
const OWN_BINARY: &str = "/proc/self/exe";

/// Starts workers of this binary.
pub struct OwnBinary {
    log: String,
    /// The operator knows that this kernel cannot restrict.
    warned: Cell<bool>,
}

impl OwnBinary {
    /// Workers log what `log` lets through.
    pub fn new(log: &str) -> Self {
        Self { log: log.to_owned(), warned: Cell::new(false) }
    }
}

impl Spawner for OwnBinary {
    fn spawn(&self, domid: u16) -> anyhow::Result<Spawned> {
        let devices = self.open_xen(domid)?;
        let (here, there) = Channel::pair().context("Cannot make a socket for a worker")?;
        let child = Command::new(OWN_BINARY)
            .arg0(env!("CARGO_PKG_NAME"))
            .arg("worker")
            .env_clear()
            .env(LOG_VARIABLE, &self.log)
            .envs(std::env::var_os("JOURNAL_STREAM").map(|value| ("JOURNAL_STREAM", value)))
            .stdin(Stdio::from(OwnedFd::from(there)))
            .stdout(Stdio::null())
            .spawn()
            .context("Cannot start a worker process")?;
        here.send(&Order::Start { version: VERSION, domid }, &devices.each_ref().map(AsFd::as_fd))
            .context("Cannot tell a new worker whom to serve")?;
        let (kill, killed) = oneshot::channel();
        Ok(Spawned { channel: here, kill, ended: Box::pin(end_of(child, killed)) })
    }

    fn open_gntdev(&self) -> anyhow::Result<OwnedFd> {
        Ok(Gntdev::open()?.into())
    }

    fn has_domain(&self, domid: u16) -> bool {
        let Some((domain, privcmd)) = DomId::new(domid.into()).ok().zip(Privcmd::open().ok()) else { return false };
        match DeviceModel::new(Arc::new(privcmd), domain).nr_vcpus() {
            Ok(_) => true,
            // One that may not be served: its worker will say so.
            Err(error) => error.kind() == Kind::Forbidden,
        }
    }
}

/// Waits for the end of a process, or ends it when `killed` is sent.
async fn end_of(mut child: Child, killed: oneshot::Receiver<()>) -> String {
    let status = tokio::select! {
        status = child.wait() => status,
        Ok(()) = killed => {
            // It fails if the process has just ended.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    status.map_or_else(|error| format!("its end is unknown: {error}"), |status| status.to_string())
}

/// Makes sure, before anything else is done, that this is a place where guests can be served.
///
/// # Errors
/// It is not; the message says what is missing.
pub fn find_xen() -> anyhow::Result<()> {
    Privcmd::open()?.probe()?;
    EventChannels::open()?;
    Ok(())
}

impl OwnBinary {
    /// Opens `/dev/xen/privcmd` and `/dev/xen/evtchn` for one guest.
    fn open_xen(&self, domid: u16) -> anyhow::Result<[OwnedFd; 2]> {
        let domain = DomId::new(domid.into())?;
        let (privcmd, evtchn) = (Privcmd::open()?, EventChannels::open()?);
        self.unless_lacking(privcmd.restrict(domain))?;
        self.unless_lacking(evtchn.restrict(domain))?;
        Ok([privcmd.into(), evtchn.into()])
    }

    /// A kernel that cannot restrict serves guests all the same; the operator should know, once.
    fn unless_lacking(&self, restricted: Result<(), xen_ioctls::Error>) -> Result<(), xen_ioctls::Error> {
        match restricted {
            Err(error) if error.kind() == Kind::KernelLacksIt => {
                if !self.warned.replace(true) {
                    tracing::warn!(name: "broker.unrestricted", %error, "Workers are not confined to their guest");
                }
                Ok(())
            }
            restricted => restricted,
        }
    }
}
