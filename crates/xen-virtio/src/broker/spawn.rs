//! Starting a worker: a fresh process of this very binary.
//!
//! It inherits nothing but a socket as standard input and the log as standard error; the devices of Xen are sent over
//! the socket, and are restricted to the guest before they are: not even a worker's first instruction can reach more. What
//! else a worker has as root it gives up before it serves ([`confine`]).

use std::cell::Cell;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use xen_ioctls::{DeviceModel, DomId, EventChannels, Gntdev, Kind, Privcmd};

use super::worker::{Spawned, Spawner};
use crate::channel::Channel;
use crate::cli::LOG_VARIABLE;
use crate::confine;
use crate::door::Door;
use crate::protocol::{Former, Order, VERSION};

/// What this process runs, even if the file has been replaced since.
const OWN_BINARY: &str = "/proc/self/exe";

/// Starts workers of this binary.
pub struct OwnBinary {
    log: String,
    /// Where workers' doors are.
    runtime: PathBuf,
    /// Where workers' user ids begin; none if they are not confined.
    uid_base: Option<u32>,
    /// The operator knows that this kernel cannot restrict.
    warned: Cell<bool>,
}

impl OwnBinary {
    /// Workers log what `log` lets through, have their doors in `runtime`, and become users from `uid_base` on. Without it
    /// they keep the rights of root.
    pub fn new(log: &str, runtime: &Path, uid_base: Option<u32>) -> Self {
        if uid_base.is_none() {
            tracing::warn!(name: "broker.no_sandbox", "WORKERS ARE NOT CONFINED (--no-sandbox): a guest that takes its \
                worker over has this host. For debugging only");
        }
        Self { log: log.to_owned(), runtime: runtime.to_owned(), uid_base, warned: Cell::new(false) }
    }

    /// The program that is to serve a guest, without its socket.
    fn worker(&self, domid: u16) -> Command {
        let mut command = Command::new(OWN_BINARY);
        command.arg0(env!("CARGO_PKG_NAME")).arg("worker");
        match self.uid_base {
            Some(base) => command.args(["--user", &confine::uid_of(domid, base).to_string()]),
            None => command.arg("--no-sandbox"),
        };
        command
            .env_clear()
            .env(LOG_VARIABLE, &self.log)
            .envs(std::env::var_os("JOURNAL_STREAM").map(|value| ("JOURNAL_STREAM", value)));
        command
    }
}

impl Spawner for OwnBinary {
    fn spawn(&self, domid: u16, former: Option<Former>) -> anyhow::Result<Spawned> {
        let [privcmd, evtchn] = self.open_xen(domid)?;
        let door = Door::make(&self.runtime, domid)
            .with_context(|| format!("Cannot make the socket of a worker in {}", self.runtime.display()))?;
        let (here, there) = Channel::pair().context("Cannot make a socket for a worker")?;
        let mut command = self.worker(domid);
        command.stdin(Stdio::from(OwnedFd::from(there))).stdout(Stdio::null());
        let child = match self.uid_base {
            Some(_) => confine::spawn(command)?,
            None => command.spawn().context("Cannot start a worker process")?,
        };
        here.send(&Order::Start { version: VERSION, domid, former }, &[privcmd.as_fd(), evtchn.as_fd(), door.as_fd()])
            .context("Cannot tell a new worker whom to serve")?;
        let (kill, killed) = oneshot::channel();
        Ok(Spawned { channel: here, kill, ended: Box::pin(end_of(child, killed)) })
    }

    fn open_gntdev(&self) -> anyhow::Result<OwnedFd> {
        Ok(Gntdev::open()?.into())
    }

    fn has_domain(&self, domid: u16) -> bool {
        match device_model(domid).map(|domain| domain.nr_vcpus()) {
            Some(Ok(_)) => true,
            // One that may not be served: its worker will say so.
            Some(Err(error)) => error.kind() == Kind::Forbidden,
            None => false,
        }
    }

    fn vcpus(&self, domid: u16) -> Option<u16> {
        let vcpus = device_model(domid)?.nr_vcpus().ok()?;
        Some(u16::try_from(vcpus).unwrap_or(u16::MAX))
    }
}

/// The way to ask Xen about a domain; `None` if there is none, or the number is no domain's.
fn device_model(domid: u16) -> Option<DeviceModel> {
    Some(DeviceModel::new(Arc::new(Privcmd::open().ok()?), DomId::new(domid.into()).ok()?))
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
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    Privcmd::open()?.probe().map_err(|error| explained(error, &command_line))?;
    EventChannels::open()?;
    Ok(())
}

/// Xen was asked about a domain that does not exist, and says so to whoever asks. What forbids that is the kernel, which
/// since XSA-482 keeps programs in a driver domain from all guests unless told otherwise (drivers/xen/privcmd.c).
fn explained(error: xen_ioctls::Error, command_line: &str) -> anyhow::Error {
    match error.kind() {
        Kind::Forbidden if is_unrestricted(command_line) => anyhow!(
            "This kernel keeps programs of its domain from all guests, although it was booted with \
             xen_privcmd.unrestricted=1: it is locked down. Boot it without lockdown"
        ),
        Kind::Forbidden => anyhow!(
            "This kernel keeps programs of its domain from all guests, as kernels of driver domains do since XSA-482: boot \
             it with xen_privcmd.unrestricted=1"
        ),
        _ => error.into(),
    }
}

/// Whether the kernel was told so, in one of its ways to write a yes; it takes `-` and `_` for the same.
fn is_unrestricted(command_line: &str) -> bool {
    command_line.split_whitespace().any(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, "1"));
        name.replace('-', "_") == "xen_privcmd.unrestricted"
            && ["1", "y", "Y", "on", "t", "T"].iter().any(|yes| value.starts_with(yes))
    })
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_kernel_that_keeps_us_from_guests_is_told_with_what_lifts_that() {
        for (command_line, unrestricted) in [
            ("console=hvc0 xen_privcmd.unrestricted=1", true),
            ("xen-privcmd.unrestricted=Y quiet", true),
            ("xen_privcmd.unrestricted", true),
            ("xen_privcmd.unrestricted=0", false),
            ("unrestricted=1", false),
            ("", false),
        ] {
            assert_eq!(is_unrestricted(command_line), unrestricted, "{command_line}");
        }
    }

    #[test]
    fn what_is_lacking_otherwise_is_told_as_it_is() {
        let null = Privcmd::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        let error = explained(null.probe().unwrap_err(), "");
        assert!(error.to_string().contains("Looking for IOREQ servers"), "{error}");
    }
}
