//! Guests whose workers a former broker started: going on with them.
//!
//! A worker outlives its broker, and waits behind its [door](crate::door) for the next one. That one does not keep it: it
//! has the worker hand over all it holds, ends it, and starts one of its own, as it does where a worker has died. So there is
//! one way to bring a guest's devices back, whatever has ended before, and a new broker brings its own binary to all of
//! them: that is how a running system is upgraded.
//!
//! Where the worker has ended as well, what it held comes from the [store](super::store). What is not there either is given up:
//! its registers are answered, so that no vCPU waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use virtio_backend::Record;

use super::guest::{Guest, Served};
use super::notes::{self, Notes};
use super::store::FdStore;
use super::worker::{Spawner, receive, register};
use super::{Broker, report};
use crate::channel::{Channel, ChannelError};
use crate::door;
use crate::model::{Device, DeviceId};
use crate::protocol::{Answer, Former, Order, VERSION};
use crate::toolstack::events::{Event, Trouble};
use crate::toolstack::libxl::Node;
use crate::toolstack::lifecycle::{Lifecycle, Stage};

/// How long a worker may take to hand over, and to end; it needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any guest has windows for.
const DEVICES_MAX: usize = 256;

impl<S: Spawner> Broker<S> {
    /// Goes on with the guests of a former broker, before anything of them is looked at.
    pub(super) async fn take_over_all(&mut self) {
        let runtime = self.settings.directories.runtime.clone();
        let noted = Notes::read_all(&runtime).unwrap_or_else(|error| {
            tracing::error!(name: "broker.no_notes", %error, "Cannot read what a former xen-virtio has noted");
            Vec::new()
        });
        let mut left_alone = BTreeSet::new();
        for (domid, notes) in noted {
            let taken = match notes {
                Ok(notes) => self.take_over(domid, notes).await,
                Err(error) => Err(error),
            };
            match taken {
                Ok(Some(taken)) => self.go_on(domid, taken).await,
                Ok(None) => self.forget(domid),
                Err(error) => {
                    tracing::error!(name: "broker.left_alone", domid, error = format!("{error:#}"),
                        "The worker of a former xen-virtio does not hand its guest over, and serves it until it ends");
                    left_alone.insert(domid);
                }
            }
        }
        let has = |node: Node| self.guests.get(&node.domid).is_some_and(|guest| guest.devices.contains_key(&node.id));
        self.settings.store.retain(|node| has(node) || left_alone.contains(&node.domid));
    }

    /// Takes a guest from its worker or, where that has ended, what is kept of it. `None`: the guest has ended as well.
    ///
    /// # Errors
    /// The worker is not willing, or does not end. Unless it was told to, it goes on serving.
    async fn take_over(&self, domid: u16, mut notes: Notes) -> anyhow::Result<Option<Taken>> {
        let store = &self.settings.store;
        let worker = door::knock(&self.settings.directories.runtime, domid).context("Its worker cannot be reached")?;
        let Some(channel) = worker else {
            if !self.spawner.has_domain(domid) {
                return Ok(None);
            }
            let mut held = store.read(domid);
            let lost = give_lost_up(&mut notes, &mut held).context("Cannot make records of its devices")?;
            return Ok(Some(Taken {
                guest: inherit(notes, held)?,
                how: "it ended when there was no xen-virtio",
                lost,
            }));
        };
        let channel = register(channel)?;
        let held = timeout(PATIENCE, hand_over(&channel)).await.context("Its worker does not answer")??;
        let guest = inherit(notes, held)?;
        // From here on it may be that nobody else has them.
        keep(store, domid, &guest);
        channel.get_ref().send(&Order::Yield, &[]).context("Its worker cannot be told to end")?;
        // The kernel closes a process's descriptors when all of its threads have let go of their memory.
        timeout(PATIENCE, end(&channel)).await.context("Its worker does not end")??;
        Ok(Some(Taken { guest, how: "it yielded to a new xen-virtio", lost: Vec::new() }))
    }

    async fn go_on(&mut self, domid: u16, Taken { guest, how, lost }: Taken) {
        let name = guest.names.name.clone();
        tracing::info!(name: "broker.takes_over", domid, guest = name, worker = how, "Going on with a guest of a former xen-virtio");
        self.guests.insert(domid, guest);
        self.happened(domid, Event::WorkerDied(how.to_owned())).await;
        for id in lost {
            let why = "xen-virtio and the guest's worker ended at once, and nothing usable is kept of the device";
            report(Node { domid, id }, name.as_deref(), &Trouble::GivenUp(why.to_owned()));
        }
    }

    /// Notes what a broker that follows must know of a guest, if that has changed.
    pub(super) fn note(&mut self, domid: u16) {
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        let notes = Notes::of(guest);
        keep(&self.settings.store, domid, guest);
        if notes == guest.noted {
            return;
        }
        guest.noted.clone_from(&notes);
        match notes {
            None => self.forget(domid),
            Some(notes) => {
                if let Err(error) = notes.write(&self.settings.directories.runtime, domid) {
                    tracing::error!(name: "broker.unnoted", domid, %error,
                        "If xen-virtio ends now, the next one cannot go on with this guest");
                }
            }
        }
    }

    /// There is nothing of a guest that a broker could go on with.
    pub(super) fn forget(&self, domid: u16) {
        if let Err(error) = notes::forget(&self.settings.directories.runtime, domid) {
            tracing::warn!(name: "broker.unforgotten", domid, %error, "What was noted of a guest stays behind");
        }
    }
}

/// A guest of a former broker.
struct Taken {
    guest: Guest,
    /// How its worker ended.
    how: &'static str,
    /// Those of its devices that ended with it.
    lost: Vec<DeviceId>,
}

/// Keeps what a guest is served with.
fn keep(store: &FdStore, domid: u16, guest: &Guest) {
    for (id, served) in &guest.devices {
        store.keep(Node { domid, id: *id }, served);
    }
}

/// Of devices of which nothing is kept, or no record that this version can read, nobody knows where they were. They are given
/// up by a record in which nothing is.
fn give_lost_up(notes: &mut Notes, held: &mut BTreeMap<DeviceId, Vec<OwnedFd>>) -> io::Result<Vec<DeviceId>> {
    held.retain(|id, descriptors| {
        let record =
            descriptors.last().context("There is none").and_then(|record| Ok(Record::of(record.try_clone()?)?));
        record.inspect_err(|error| tracing::error!(name: "broker.no_record", device = %id, "{error:#}")).is_ok()
    });
    let mut lost = Vec::new();
    for Device { id, .. } in &notes.devices {
        if !held.contains_key(id) {
            held.insert(*id, vec![Record::new()?.as_fd().try_clone_to_owned()?]);
            lost.push(*id);
        }
    }
    notes.given_up.extend(&lost);
    Ok(lost)
}

/// Waits for a worker's end. What it says meanwhile it had to say to its former broker.
async fn end(channel: &AsyncFd<Channel>) -> Result<(), ChannelError> {
    while receive(channel).await?.is_some() {}
    Ok(())
}

async fn hand_over(channel: &AsyncFd<Channel>) -> anyhow::Result<BTreeMap<DeviceId, Vec<OwnedFd>>> {
    channel.get_ref().send(&Order::HandOver { version: VERSION }, &[])?;
    let mut held = BTreeMap::new();
    while held.len() <= DEVICES_MAX {
        match receive(channel).await?.context("It has ended meanwhile")? {
            (Answer::Holds { id }, descriptors) => drop(held.insert(id, descriptors)),
            (Answer::HandedOver, _) => return Ok(held),
            (Answer::Unable { reason }, _) => bail!(reason),
            // What it had to say to the former broker is not said any more; what it says now is asked for again.
            _ => {}
        }
    }
    bail!("Its worker has more devices than there can be")
}

/// What the former broker noted, with what the worker holds. A device that it was to be given and was not is new: what asks
/// for it will be seen.
fn inherit(notes: Notes, mut held: BTreeMap<DeviceId, Vec<OwnedFd>>) -> anyhow::Result<Guest> {
    let Notes { version: _, names, former: Former { server, windows }, devices, given_up, vacant } = notes;
    let mut stages: Vec<_> = vacant.into_iter().map(|id| (id, Stage::Vacant)).collect();
    let mut inherited = BTreeMap::new();
    for device in devices {
        let Some(descriptors) = held.remove(&device.id) else { continue };
        let stage = if given_up.contains(&device.id) { Stage::GivenUp } else { Stage::Serving };
        stages.push((device.id, stage));
        inherited.insert(device.id, served(device, descriptors)?);
    }
    Ok(Guest {
        names,
        lifecycle: Lifecycle::inherited(stages),
        devices: inherited,
        server: Some(server),
        windows: windows.into_iter().map(|window| (window.id, window.place)).collect(),
        ..Guest::default()
    })
}

fn served(device: Device, mut descriptors: Vec<OwnedFd>) -> anyhow::Result<Served> {
    let record = descriptors.pop().with_context(|| format!("There is no record of {}", device.name))?;
    // Of the worker's own open file description, nothing is to stay behind when that worker has ended.
    let record = Record::of(Record::of(record)?.reopen()?)?;
    Ok(Served { device, descriptors, record })
}
