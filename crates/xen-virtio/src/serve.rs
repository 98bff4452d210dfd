//! `xen-virtio serve`: makes sure of the ground it stands on, then runs the broker.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;
use xenstore::Store;

use crate::broker::prepare::Directories;
use crate::broker::spawn::{OwnBinary, find_xen};
use crate::broker::store::FdStore;
use crate::broker::successor::become_program;
use crate::broker::{Broker, CLOSING_PATIENCE, End, Request, Settings, control};
use crate::cli::Serve;
use crate::failure::Failure;
use crate::logging;
use crate::model::Model;
use crate::process::{StopSignals, allow_descriptors, reap_inherited};
use crate::toolstack::fixed::Fixed;
use crate::toolstack::{Toolstack, nodes};

/// The lock's name in the runtime directory.
const LOCK: &str = "lock";

/// Serves until stopped.
///
/// # Errors
/// The machine is not ready for it, or it runs already.
pub fn run(options: &Serve) -> Result<(), Failure> {
    logging::for_broker(&options.log).map_err(Failure::Usage)?;
    find_xen()?;
    let _lock = take_lock(&options.runtime.directory)?;
    // What a device has open, the broker has open as long.
    allow_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("Cannot start the event loop")?;
    let successor = runtime.block_on(serve(options))?;
    // Waits for what is being done beside the loop.
    drop(runtime);
    match successor {
        Some((program, store)) => Err(become_program(&program, &store).into()),
        None => Ok(()),
    }
}

/// Serves until stopped; for another program to take over, if one is given, with what is kept.
async fn serve(options: &Serve) -> Result<Option<(PathBuf, FdStore)>, Failure> {
    reap_inherited().context("Cannot catch signals")?;
    let toolstack = match &options.static_file {
        Some(file) => Toolstack::Static(Fixed::load(file).map_err(anyhow::Error::from)?),
        None => Toolstack::Libxl(connect().await.map_err(anyhow::Error::from)?),
    };
    let directory = &options.runtime.directory;
    let listener = control::listen(directory)
        .with_context(|| format!("Cannot make the control socket in {}", directory.display()))?;
    let (requests, for_broker) = mpsc::channel(8);
    let signals = StopSignals::catch().context("Cannot catch signals")?;
    tokio::spawn(control::serve(listener, requests.clone(), options.no_sandbox));
    tokio::spawn(async move {
        signals.wait().await;
        // No receiver means that the broker has ended.
        let _ = requests.send(Request::Stop).await;
    });
    let spawner = OwnBinary::new(&options.log, directory, options.uid_base());
    let kind = options.only.as_deref();
    let store = FdStore::of_this_process()?;
    let settings = Settings {
        directories: Directories { configurations: options.guests.clone(), runtime: directory.clone() },
        only: Model::kinds_with_id().find(|(name, _)| Some(*name) == kind).map(|(_, id)| id),
        closing_patience: CLOSING_PATIENCE,
        deaths_per_minute: options.restarts,
        store: store.clone(),
    };
    let ended = Broker::run(toolstack, spawner, settings, for_broker, announce_ready).await;
    let End { left, successor } = ended.context("Cannot watch xenstore")?;
    if !left.is_empty() && successor.is_none() {
        tracing::warn!(name: "broker.left", guests = ?left,
            "Stopped; these guests' devices go on working, each served by its worker until the guest ends");
    }
    Ok(successor.map(|program| (program, store)))
}

/// Connects to xenstored, and says from where.
async fn connect() -> Result<Store, xenstore::Error> {
    let store = Store::connect(xenstore::Options::default()).await?;
    let domid = nodes::own_domid(&store).await?;
    tracing::info!(name: "serve.connected", domid, xenstore = &*store.address(),
        "Running in this domain, and connected to xenstored");
    Ok(store)
}

fn announce_ready() {
    tracing::info!(name: "broker.watching", "Serving; waiting for guests");
    // Fails where no service manager listens, as in a shell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Makes sure that we are alone: two brokers would both answer the toolstack.
fn take_lock(directory: &Path) -> Result<File, Failure> {
    let path = directory.join(LOCK);
    let make = || {
        fs::create_dir_all(directory)?;
        File::options().create(true).truncate(false).write(true).open(&path)
    };
    let lock = make().with_context(|| format!("Cannot make {}; run as root, or choose --run", path.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::Usage(anyhow!(
            "xen-virtio runs already and holds {}; stop it first, for instance by `systemctl stop xen-virtio`",
            path.display()
        ))),
        Err(errno) => Err(anyhow!(io::Error::from(errno)).context(format!("Cannot lock {}", path.display())).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h12_a_second_broker_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = take_lock(directory.path()).unwrap();

        let second = take_lock(directory.path());
        drop(first);
        let third = take_lock(directory.path());

        assert!(matches!(second, Err(Failure::Usage(why)) if why.to_string().contains("runs already")));
        assert!(third.is_ok());
    }

    #[test]
    fn a_runtime_directory_that_cannot_be_made_is_named() {
        let error = take_lock(Path::new("/proc/xen-virtio")).unwrap_err();

        assert!(matches!(error, Failure::Environment(why) if format!("{why:#}").contains("/proc/xen-virtio/lock")));
    }
}
