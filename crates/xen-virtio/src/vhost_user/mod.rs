//! `xen-virtio vhost-user`: one device on a vhost-user socket, for any VMM to connect to.
//!
//! The device is the same that a worker has, opened and made in the same way by its kind; the transport is another.
//! Broker and worker are one here: nobody but the operator starts this process, with the operator's own rights.

mod capabilities;
mod keys;
mod name;
mod place;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::thread;

use ::vhost_user::{Server, Stopper};
use anyhow::Context;
use virtio_backend::{Backend, Operation, Owner};

use crate::cli::VhostUser;
use crate::failure::Failure;
use crate::logging;
use crate::model::Model;
use crate::process::{StopSignals, UserSignal, allow_descriptors, survive_file_size_limit};
use place::Place;

/// Serves the device until it is stopped, or says what it is.
///
/// # Errors
/// It was called wrongly, or the socket or the device cannot be opened.
pub fn run(options: &VhostUser) -> Result<(), Failure> {
    if options.print_capabilities {
        println!("{}", capabilities::of(&options.kind));
        return Ok(());
    }
    let model = keys::model(&options.kind, &options.keys).map_err(Failure::Usage)?;
    let place = Place::choose(options.socket.as_deref(), options.fd).map_err(Failure::Usage)?;
    let owner = name::owner(options, place.path().as_deref()).map_err(Failure::Usage)?;
    logging::for_device(&options.log, &owner.guest).map_err(Failure::Usage)?;
    allow_descriptors();
    survive_file_size_limit();
    // The socket first: whoever serves there already has the same tap or links on the host, perhaps.
    let (listener, _made) = place.listen()?;
    Ok(open_and_serve(model, &owner, listener)?)
}

fn open_and_serve(mut model: Model, owner: &Owner, listener: UnixListener) -> anyhow::Result<()> {
    let directory = &owner.directory;
    fs::create_dir_all(directory)
        .with_context(|| format!("Cannot make {}; choose another directory by --run", directory.display()))?;
    let descriptors = model.open(owner).with_context(|| format!("Cannot open the {}", model.kind()))?;
    let served =
        model.make(descriptors, model.reach_directly()).and_then(|backend| serve(&model, owner, backend, listener));
    model.close(owner);
    served
}

fn serve(model: &Model, owner: &Owner, backend: Arc<dyn Backend>, listener: UnixListener) -> anyhow::Result<()> {
    let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let server =
        Server::new(&owner.guest, Arc::clone(&backend), listener).context("Cannot serve on the vhost-user socket")?;
    heed_signals(server.stopper(), backend).context("Cannot catch signals")?;
    tracing::info!(name: "vhost_user.ready", kind = model.kind(), host_end = model.host_end(),
        "vhost-user socket {} is ready: a VMM that shares its guest's memory can connect",
        socket.as_deref().unwrap_or(Path::new("without a name")).display());
    // Fails where no service manager listens, as in a shell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    server.serve().context("The vhost-user socket has failed")?;
    tracing::info!(name: "vhost_user.stopped", "Stopped");
    Ok(())
}

/// Has a thread wait for the signals, which ends with the process.
fn heed_signals(stopper: Stopper, backend: Arc<dyn Backend>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (stop, mut user) = {
        let _in_runtime = runtime.enter();
        (StopSignals::catch()?, UserSignal::catch()?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let mut stopped = pin!(stop.wait());
            loop {
                tokio::select! {
                    () = &mut stopped => return,
                    () = user.next() => look_again(&*backend),
                }
            }
        });
        // The device ends with the server, which is the last to hold it.
        drop(backend);
        stopper.stop();
    })?;
    Ok(())
}

/// What `xen-virtio resize` and `resume` are to a guest's device: nobody else can ask anything of this one.
fn look_again(backend: &dyn Backend) {
    for operation in [Operation::Resize { shrink: false }, Operation::Resume] {
        if let Err(why) = backend.operate(operation) {
            tracing::info!(name: "vhost_user.unmoved", ?operation, why, "SIGUSR1 has changed nothing");
        }
    }
}
