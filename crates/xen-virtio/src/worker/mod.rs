//! `xen-virtio worker`: serves one guest, and knows nothing else.
//!
//! A fresh process that the broker starts with a socket as standard input; all else it needs comes over that socket,
//! already opened and already restricted to its guest. With that in its hands, and before it looks at anything of its guest's, it
//! gives up all other rights ([`confine`]). Its main thread obeys the broker and does the errands that other
//! threads leave; the pump serves the guest's accesses and lanes do its I/O, so that nothing here delays the guest.
//!
//! If the broker dies the worker goes on serving, until its guest ends or the next broker comes, to which it hands over. If its own code panics it aborts: the
//! IOREQ server stays, as it was, with Xen, and so do the records of its devices with the broker. The broker then starts
//! another worker, which goes on with both.

mod caches;
mod errands;
mod interrupt;
mod memory;
mod orders;
pub mod reach;
mod wiring;
mod xen;

use std::io::stdin;
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::Arc;

use anyhow::{Context, bail};
use ioreq::{EventChannels, Hypervisor};

use crate::channel::Channel;
use crate::cli::{self, LOG_VARIABLE};
use crate::confine;
use crate::door::Door;
use crate::failure::Failure;
use crate::logging::{self, HeldBack};
use crate::process::{allow_descriptors, survive_file_size_limit};
use crate::protocol::{Answer, Former, Order, Report, VERSION};
pub use caches::GuestPages;
use errands::Errands;
use orders::Service;
use wiring::Guest;
use xen::Xen;

/// Serves the guest that the broker names, until it is told to stop or the guest is gone.
///
/// # Errors
/// It was not started by a broker, or the guest cannot be served.
pub fn run(options: &cli::Worker) -> Result<(), Failure> {
    // The kernel has named us "exe", after /proc/self/exe; a worker without a name of its own serves as well.
    let _ = rustix::thread::set_name(c"xen-virtio");
    // Where the kernel shares processors out by sessions (sched_autogroup_enabled), no guest gets more of them for having
    // more threads here. It fails where somebody has made us one already.
    let _ = rustix::process::setsid();
    allow_descriptors();
    survive_file_size_limit();
    // A panic here must not unwind: what is dropped on the way would be taken from under a running guest.
    let served = panic::catch_unwind(AssertUnwindSafe(|| {
        let channel = Channel::from(stdin().as_fd().try_clone_to_owned().context("Cannot use standard input")?);
        let Beginning { xen, former, door, held_back } = begin(&channel)?;
        confine(options).inspect_err(|error| drop(channel.send(&unable(error), &[])))?;
        serve(channel, xen.hypervisor, xen.events, xen.pages, former, door, held_back)
    }));
    served.unwrap_or_else(|_| process::abort()).map_err(Failure::Environment)
}

/// Gives up all rights that a worker can do without.
fn confine(options: &cli::Worker) -> anyhow::Result<()> {
    match options.user {
        Some(user) => confine::enter(user),
        None if options.no_sandbox => {
            tracing::warn!(name: "worker.no_sandbox", "This worker is not confined (--no-sandbox)");
            Ok(())
        }
        None => bail!("The broker did not say as which user to serve"),
    }
}

fn unable(error: &anyhow::Error) -> Answer {
    Answer::Unable { reason: format!("{error:#}") }
}

/// Serves the guest that these are of, by orders from `channel`; from where a worker before left it, if one did. Should the
/// broker die, the next one comes by `door`.
///
/// # Errors
/// It cannot be served, of which the broker has been told; or something of it is left behind at the end.
pub fn serve(
    channel: Channel,
    hypervisor: Arc<dyn Hypervisor>,
    events: Arc<dyn EventChannels>,
    pages: impl GuestPages,
    former: Option<Former>,
    door: Door,
    held_back: HeldBack,
) -> anyhow::Result<()> {
    // If the broker is gone as well, the log has what there is to say.
    let tell = |answer: &Answer| drop(channel.send(answer, &[]));
    let errands = Errands::new().context("Cannot make an eventfd")?;
    let created = |server| tell(&Answer::Created { server });
    let started = Guest::start(hypervisor, events, pages, errands.clone(), former, created);
    let Some(guest) = started.inspect_err(|error| tell(&unable(error)))? else {
        tell(&Answer::Report(Report::default()));
        return Ok(());
    };
    channel.send(&Answer::Started { version: VERSION }, &[])?;
    Service::new(guest, errands, door, held_back).run(channel)
}

/// What a worker begins with.
struct Beginning {
    xen: Xen,
    former: Option<Former>,
    door: Door,
    held_back: HeldBack,
}

fn begin(channel: &Channel) -> anyhow::Result<Beginning> {
    let first = orders::receive(channel).context("This command is for `xen-virtio serve` to start")?;
    let Some((Order::Start { version, domid, former }, descriptors)) = first else {
        bail!("The broker did not begin with whom to serve");
    };
    let filter = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| "info".to_owned());
    let held_back = logging::for_worker(&filter, domid)?;
    if version != VERSION {
        bail!("The broker speaks version {version} and this worker {VERSION}; restart xen-virtio");
    }
    let [privcmd, evtchn, door] = <[_; 3]>::try_from(descriptors).ok().context("The broker sent no Xen devices")?;
    Ok(Beginning { xen: Xen::new(domid, privcmd, evtchn)?, former, door: door.into(), held_back })
}
