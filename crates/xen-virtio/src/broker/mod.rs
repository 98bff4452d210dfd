//! The broker: one loop that hears of everything and decides.
//!
//! Runs on one thread of tokio. It alone talks to the toolstack, reads configuration and opens files; it parses nothing that
//! a guest wrote. Each guest's devices are served by a worker process of their own ([`worker`]), which another one follows
//! if it dies (follow.rs), or if a new broker takes over (takeover.rs); where they are in life is the lifecycle's to say
//! ([`crate::toolstack::lifecycle`]). What may take long runs beside the loop and reports to it.

mod ask;
pub mod control;
mod deaths;
mod edits;
mod follow;
pub mod guest;
mod look;
mod notes;
pub mod prepare;
mod reach;
mod serving;
pub mod spawn;
pub mod store;
pub(crate) mod successor;
mod takeover;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use virtio_backend::Operation;

use crate::config::GuestName;
use crate::model::{Device, Grants};
use crate::protocol::{Answer, Order, Report, VERSION};
use crate::toolstack::events::{Action, Event, News, Trouble};
use crate::toolstack::libxl::Node;
use crate::toolstack::{Toolstack, nodes};
use ask::Outcome;
use edits::Edits;
use guest::{Guest, GuestView};
use prepare::{Directories, Prepared};
use store::FdStore;
use worker::{Heard, Spawner};

/// What waits for the broker's loop at most; those who have more to say wait themselves.
const QUEUE: usize = 64;

/// What the loop is asked.
#[derive(Debug)]
pub enum Request {
    /// Say what is served. The reports come later, if the workers send them.
    List(oneshot::Sender<Vec<(GuestView, oneshot::Receiver<Report>)>>),
    /// Do this to a device, and say what came of it.
    Operate {
        /// The guest's name or domain id.
        guest: String,
        /// The device's name within the guest.
        device: String,
        /// What.
        operation: Operation,
        /// Where to say it.
        reply: oneshot::Sender<Outcome>,
    },
    /// End, and leave guests to their workers.
    Stop,
    /// End as well, for this program to take over.
    MakeWay(PathBuf),
}

/// How a broker ended.
#[derive(Debug)]
pub struct End {
    /// The guests that are left to their workers.
    pub left: Vec<u16>,
    /// The program that is to take over.
    pub successor: Option<PathBuf>,
}

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where things are on the host.
    pub directories: Directories,
    /// The one kind of device that is served, by its virtio device ID; all kinds if `None`.
    pub only: Option<u32>,
    /// How long a worker may take to let go of a device before it is killed.
    pub closing_patience: Duration,
    /// How many workers of a guest may die within a minute and be followed by another. If more do, its devices are given up.
    pub deaths_per_minute: u32,
    /// Where devices are kept beyond the end of this process.
    pub store: FdStore,
}

/// libxl waits ten seconds for a device to be closed (`LIBXL_DESTROY_TIMEOUT`); what a worker does not use of them is
/// left for the answer.
pub const CLOSING_PATIENCE: Duration = Duration::from_secs(7);

/// A bug that a request of the guest meets, each time it is tried again, is not worth more.
pub const DEATHS_PER_MINUTE: u32 = 5;

/// The broker.
pub struct Broker<S> {
    toolstack: Toolstack,
    spawner: S,
    settings: Settings,
    guests: BTreeMap<u16, Guest>,
    /// Where what was prepared beside the loop comes back.
    prepared: mpsc::Sender<(Node, anyhow::Result<Prepared>)>,
    /// Where workers' words come in, each with its guest.
    heard: mpsc::Sender<(u16, Heard)>,
    /// Devices that are closed, and of which something is left on the host.
    clearing: BTreeSet<Node>,
    /// Where it is told that nothing is left of one any more.
    cleared: mpsc::Sender<Node>,
}

impl<S: Spawner> Broker<S> {
    /// Serves what the toolstack asks for, until told to stop. `ready` is called once everything is watched.
    ///
    /// Gives the guests that are left to their workers, which serve them until they end: they live longer than the
    /// broker, whether it is stopped or killed.
    ///
    /// # Errors
    /// Xenstore refuses to be watched.
    pub async fn run(
        toolstack: Toolstack,
        spawner: S,
        settings: Settings,
        mut requests: mpsc::Receiver<Request>,
        ready: impl FnOnce(),
    ) -> Result<End, xenstore::Error> {
        let mut sightings = toolstack.listen().await?;
        let (prepared, mut from_preparation) = mpsc::channel(QUEUE);
        let (heard, mut from_workers) = mpsc::channel(QUEUE);
        let (cleared, mut from_clearing) = mpsc::channel(QUEUE);
        let guests = BTreeMap::new();
        let mut broker =
            Self { toolstack, spawner, settings, guests, prepared, heard, clearing: BTreeSet::new(), cleared };
        let mut edits = Edits::of(&broker.settings.directories.configurations);
        broker.take_over_all().await;
        broker.look_at_once().await;
        ready();
        loop {
            let deadlines = broker.guests.values().flat_map(|guest| [guest.deadline, guest.follow_at]);
            let next_deadline = deadlines.flatten().min();
            tokio::select! {
                sighting = sightings.next() => broker.look_at(sighting).await,
                Some((node, prepared)) = from_preparation.recv() => broker.take_prepared(node, prepared).await,
                Some((domid, heard)) = from_workers.recv() => broker.hear(domid, heard).await,
                guest = edits.next() => broker.say_edited(&guest),
                Some(node) = from_clearing.recv() => {
                    broker.clearing.remove(&node);
                    broker.publish(node, News::Closed).await;
                }
                Some(request) = requests.recv() => match request {
                    Request::List(reply) => broker.list(reply),
                    Request::Operate { guest, device, operation, reply } => {
                        broker.operate(&guest, &device, operation, reply);
                    }
                    Request::Stop => return Ok(End { left: broker.in_use(), successor: None }),
                    Request::MakeWay(successor) => {
                        return Ok(End { left: broker.in_use(), successor: Some(successor) });
                    }
                },
                () = tokio::time::sleep_until(next_deadline.unwrap_or_else(Instant::now)), if next_deadline.is_some() =>
                {
                    broker.press_the_overdue().await;
                    broker.follow_the_due().await;
                }
            }
        }
    }

    fn list(&mut self, reply: oneshot::Sender<Vec<(GuestView, oneshot::Receiver<Report>)>>) {
        let guests = self.guests.iter_mut().map(|(domid, guest)| (guest.view(*domid), guest.ask_for_report()));
        // Who asked may have gone; then nobody minds.
        let _ = reply.send(guests.collect());
    }

    fn in_use(&self) -> Vec<u16> {
        let used = self.guests.iter().filter(|(_, guest)| guest.lifecycle.is_in_use());
        used.map(|(domid, _)| *domid).collect()
    }
}

/// What happens to a guest, and what follows.
impl<S: Spawner> Broker<S> {
    async fn happened(&mut self, domid: u16, event: Event) {
        tracing::debug!(name: "broker.happened", domid, ?event);
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let guest = self.guests.entry(domid).or_default();
            let actions = guest.lifecycle.handle(event);
            for action in actions {
                events.extend(self.act(domid, action).await);
            }
            if let Some(guest) = self.guests.get_mut(&domid) {
                for device in guest.settle(self.settings.closing_patience) {
                    tokio::spawn(clear(self.settings.store.clone(), domid, device));
                }
            }
        }
        self.say_followed(domid);
        if self.guests.get(&domid).is_some_and(|guest| guest.lifecycle.is_over()) {
            self.guests.remove(&domid);
            self.forget(domid);
        }
        self.note(domid);
    }

    /// Does it; what comes of it at once is an event, too.
    async fn act(&mut self, domid: u16, action: Action) -> Option<Event> {
        tracing::debug!(name: "broker.act", domid, ?action);
        match action {
            Action::Reserve(id) => return self.reserve(Node { domid, id }).await,
            Action::Prepare(id) => self.prepare(Node { domid, id }).await,
            Action::Vacate(id) => self.tell(domid, &Order::Vacate { id }),
            Action::Attach(id) => return self.attach(domid, id),
            Action::GiveUp(id) => self.give_up(domid, id),
            Action::FollowWorker => return self.follow(domid),
            Action::Detach(id) => self.tell(domid, &Order::Detach { id }),
            Action::StopWorker if self.has_worker(domid) => self.tell(domid, &Order::Stop),
            Action::StopWorker => return Some(Event::WorkerEnded("there was none".to_owned())),
            Action::KillWorker => {
                tracing::error!(name: "broker.overdue", domid,
                    "The worker of a guest did not let go of its devices in time, and is killed");
                self.kill(domid, "it was killed because it did not let go of its devices in time");
            }
            Action::Publish(id, news) => self.publish(Node { domid, id }, news).await,
            Action::Report(id, trouble) => {
                let guest = self.learn_name(domid).await;
                report(Node { domid, id }, guest.as_deref(), &trouble);
            }
        }
        None
    }

    async fn prepare(&mut self, node: Node) {
        let name = self.learn_name(node.domid).await;
        tracing::info!(name: "broker.new", domid = node.domid, guest = name, device = %node.id, "A new device");
        let (toolstack, directories) = (self.toolstack.clone(), self.settings.directories.clone());
        let done = self.prepared.clone();
        let vcpus = self.spawner.vcpus(node.domid).unwrap_or(1);
        tokio::spawn(async move {
            let prepared = prepare::prepare(&toolstack, directories, node, vcpus).await;
            // No receiver means that the broker has ended.
            let _ = done.send((node, prepared)).await;
        });
    }

    /// For people; a guest is served all the same if it has none.
    async fn learn_name(&mut self, domid: u16) -> Option<String> {
        let guest = self.guests.entry(domid).or_default();
        if guest.names.name.is_none() {
            guest.names = match &self.toolstack {
                Toolstack::Libxl(store) => nodes::guest_name(store, domid).await.unwrap_or_default(),
                Toolstack::Static(file) => GuestName { name: file.name(domid).map(str::to_owned), uuid: None },
            };
        }
        guest.names.name.clone()
    }

    /// Tells the toolstack; that a device is closed, only once nothing of it is left on the host, so that the guest's
    /// next life finds the place free.
    async fn publish(&mut self, node: Node, news: News) {
        let Node { domid, id } = node;
        match &news {
            News::Ready => tracing::info!(name: "broker.ready", domid, device = %id, "The guest can use the device"),
            News::Failed(reason) => {
                tracing::error!(name: "broker.refused", domid, device = %id, reason, "The device cannot be served");
            }
            News::Closed => {
                if let Some(served) = self.guests.get_mut(&domid).and_then(|guest| guest.devices.remove(&id)) {
                    // What it has open goes before anybody hears that it is closed.
                    let device = served.device;
                    self.clearing.insert(node);
                    let (store, cleared) = (self.settings.store.clone(), self.cleared.clone());
                    tokio::spawn(async move {
                        clear(store, domid, device).await;
                        // No receiver means that the broker has ended.
                        let _ = cleared.send(node).await;
                    });
                }
                // It is seen once more before that.
                if self.clearing.contains(&node) {
                    return;
                }
                tracing::info!(name: "broker.closed", domid, device = %id, "The device is closed");
            }
        }
        if let Toolstack::Libxl(store) = &self.toolstack
            && let Err(error) = nodes::publish(store, node, &news).await
        {
            postponed(&error);
        }
    }

    async fn take_prepared(&mut self, node: Node, prepared: anyhow::Result<Prepared>) {
        let Node { domid, id } = node;
        let prepared = prepared.and_then(|prepared| self.refuse_clash(node, prepared));
        let event = match prepared.and_then(|prepared| self.give_grants(prepared)) {
            Ok(prepared) => match self.guests.get_mut(&domid) {
                Some(guest) => {
                    guest.prepared.insert(id, prepared);
                    Event::Prepared(id)
                }
                // The guest was faster to go than its device to open.
                None => return drop(tokio::spawn(clear(self.settings.store.clone(), domid, prepared.device))),
            },
            Err(error) => Event::Refused(id, format!("{error:#}")),
        };
        self.happened(domid, event).await;
    }

    /// Two devices may not share what each takes for itself alone, whatever the host would allow.
    fn refuse_clash(&self, node: Node, prepared: Prepared) -> anyhow::Result<Prepared> {
        let wanted = prepared.device.model.exclusive();
        for (domid, guest) in &self.guests {
            for (id, other) in guest.devices.iter().filter(|(id, _)| (*domid, **id) != (node.domid, node.id)) {
                if let Some(shared) = other.device.model.exclusive().into_iter().find(|taken| wanted.contains(taken)) {
                    let whose = guest.names.name.as_deref().unwrap_or("without a name");
                    anyhow::bail!(
                        "{shared} is used already by {} of guest {whose} (domain {domid}, {id})",
                        other.device.name
                    );
                }
            }
        }
        Ok(prepared)
    }

    /// Adds the way to the guest's grants, to a device that has a use for it and to no other.
    fn give_grants(&self, mut prepared: Prepared) -> anyhow::Result<Prepared> {
        if prepared.device.grants != Grants::Never {
            let gntdev = self.spawner.open_gntdev();
            prepared.descriptors.push(gntdev.with_context(|| {
                format!("{} is to reach the guest's memory by grants, and cannot", prepared.device.name)
            })?);
        }
        Ok(prepared)
    }

    /// What a worker says is about its own guest, whatever it says, and never about a device it was not given.
    async fn hear(&mut self, domid: u16, heard: Heard) {
        tracing::debug!(name: "broker.heard", domid, ?heard);
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        let event = match heard {
            Heard::Answer(Answer::Started { version }) => {
                if version != VERSION {
                    self.kill(domid, "it was killed because it is of another version; restart xen-virtio");
                }
                return;
            }
            Heard::Answer(Answer::Created { server }) => {
                guest.server = Some(server);
                return self.note(domid);
            }
            Heard::Answer(Answer::Unable { reason }) => {
                guest.unable(reason);
                return;
            }
            Heard::Answer(Answer::Report(report)) => {
                guest.pass_report_on(&report);
                if report.alive {
                    return;
                }
                Event::DomainGone
            }
            Heard::Answer(Answer::Operated { id, outcome }) => return guest.pass_outcome_on(id, outcome),
            Heard::Answer(Answer::Reach { id, ticket, number }) => return self.reach(domid, id, ticket, number),
            // Nobody asked for that.
            Heard::Answer(Answer::Holds { .. } | Answer::HandedOver) => return,
            Heard::Answer(Answer::Attached { id }) => Event::Attached(id),
            Heard::Answer(Answer::Refused { id, reason }) => Event::Refused(id, reason),
            Heard::Answer(Answer::Detached { id, used }) => {
                if !used {
                    say_unused(Node { domid, id });
                }
                Event::Detached(id)
            }
            Heard::Ended(how) => match self.ended(domid, how) {
                Some(event) => event,
                None => return,
            },
        };
        self.happened(domid, event).await;
    }

    async fn press_the_overdue(&mut self) {
        let now = Instant::now();
        let overdue = |guest: &Guest| guest.deadline.is_some_and(|deadline| deadline <= now);
        let guests: Vec<_> = self.guests.iter().filter(|(_, guest)| overdue(guest)).map(|(domid, _)| *domid).collect();
        for domid in guests {
            if let Some(guest) = self.guests.get_mut(&domid) {
                // Killing takes a moment, too.
                guest.deadline = Some(now + self.settings.closing_patience);
            }
            self.happened(domid, Event::Overdue).await;
        }
    }

    fn has_worker(&self, domid: u16) -> bool {
        self.guests.get(&domid).is_some_and(|guest| guest.worker.is_some())
    }

    fn tell(&self, domid: u16, order: &Order) {
        if let Some(worker) = self.guests.get(&domid).and_then(|guest| guest.worker.as_ref()) {
            worker.tell(order, &[]);
        }
    }

    fn kill(&self, domid: u16, why: &'static str) {
        if let Some(worker) = self.guests.get(&domid).and_then(|guest| guest.worker.as_ref()) {
            worker.kill(why);
        }
    }
}

/// Takes away what was made on the host for a device, and what is kept of it.
async fn clear(store: FdStore, domid: u16, Device { id, model, owner, .. }: Device) {
    let clear = move || {
        store.release(Node { domid, id });
        model.close(&owner);
    };
    // It fails only if it panics, of which there is a message.
    let _ = tokio::task::spawn_blocking(clear).await;
}

/// Perhaps the guest was not meant to use it; perhaps it died trying, before the window was claimed.
fn say_unused(node: Node) {
    let Node { domid, id } = node;
    if !id.class.is_waited_for() {
        tracing::warn!(name: "broker.unused", domid, device = %id,
            "The guest ended without having touched this device. If it crashed while it looked for it, it was faster \
             than xen-virtio, which must run before the guest is created; `xl create -p`, `xen-virtio wait` and \
             `xl unpause` leave nothing to chance");
    }
}

fn report(node: Node, guest: Option<&str>, trouble: &Trouble) {
    let Node { domid, id } = node;
    match trouble {
        Trouble::Foreign => tracing::warn!(name: "broker.foreign", domid, device = %id,
            "A former xen-virtio served this device, and it cannot be taken over. If its worker still runs, the guest is \
             well; else the guest hangs when it uses the device: end it with `xl destroy {domid}` and create it again"),
        Trouble::WorkerDied(how) => tracing::error!(name: "broker.worker_died", domid, device = %id, how,
            "The worker that served this device died: the guest hangs as soon as it uses it. \
             End the guest with `xl destroy {domid}` and create it again"),
        Trouble::GivenUp(why) => tracing::error!(name: "broker.given_up", domid, guest, device = %id, why,
            "This device is given up: its guest runs on, and finds it broken. `xl reboot {domid}` brings it back, or \
             `xl destroy {domid}` and creating the guest again"),
    }
}

/// Xenstore will tell everything again once it is back.
fn postponed(error: &xenstore::Error) {
    tracing::warn!(name: "broker.postponed", %error, "Xenstore did not answer; looking again when it does");
}
