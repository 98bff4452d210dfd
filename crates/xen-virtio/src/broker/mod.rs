//! The broker: one loop that hears of everything and decides.
//!
//! Runs on one thread of tokio. It alone talks to xenstore, reads configuration and opens files; it parses nothing that
//! a guest wrote. Each guest's devices are served by a worker process of their own ([`worker`]); where they are in life
//! is the lifecycle's to say ([`crate::toolstack::lifecycle`]). What may take long runs beside the loop and reports to it.

pub mod control;
pub mod guest;
pub mod prepare;
pub mod spawn;
pub mod worker;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use xenstore::Store;

use crate::model::{Class, DeviceId};
use crate::protocol::{Answer, Order, Report, VERSION};
use crate::toolstack::libxl::{self, Place};
use crate::toolstack::lifecycle::{Action, Event, News, Trouble};
use crate::toolstack::nodes;
use guest::{Guest, GuestView};
use prepare::Prepared;
use worker::{Heard, Spawner, Worker};

/// What waits for the broker's loop at most; those who have more to say wait themselves.
const QUEUE: usize = 64;

/// What the loop is asked.
#[derive(Debug)]
pub enum Request {
    /// Say what is served. The reports come later, if the workers send them.
    List(oneshot::Sender<Vec<(GuestView, oneshot::Receiver<Report>)>>),
    /// End, and leave guests to their workers.
    Stop,
}

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where guests' configuration files are.
    pub configurations: PathBuf,
    /// How long a worker may take to let go of a device before it is killed.
    pub closing_patience: Duration,
}

/// libxl waits ten seconds for a device to be closed (`LIBXL_DESTROY_TIMEOUT`); what a worker does not use of them is
/// left for the answer.
pub const CLOSING_PATIENCE: Duration = Duration::from_secs(7);

/// The broker.
pub struct Broker<S> {
    store: Store,
    spawner: S,
    settings: Settings,
    guests: BTreeMap<u16, Guest>,
    /// Where what was prepared beside the loop comes back.
    prepared: mpsc::Sender<(Place, anyhow::Result<Prepared>)>,
    /// Where workers' words come in, each with its guest.
    heard: mpsc::Sender<(u16, Heard)>,
}

impl<S: Spawner> Broker<S> {
    /// Serves what xenstore asks for, until told to stop. `ready` is called once everything is watched.
    ///
    /// Gives the guests that are left to their workers, which serve them until they end: they live longer than the
    /// broker, whether it is stopped or killed.
    ///
    /// # Errors
    /// Xenstore refuses to be watched.
    pub async fn run(
        store: Store,
        spawner: S,
        settings: Settings,
        mut requests: mpsc::Receiver<Request>,
        ready: impl FnOnce(),
    ) -> Result<Vec<u16>, xenstore::Error> {
        let mut devices = store.watch(&libxl::class_directory(Class::VirtioDisk)).await?;
        let mut deaths = store.watch("@releaseDomain").await?;
        let (prepared, mut from_preparation) = mpsc::channel(QUEUE);
        let (heard, mut from_workers) = mpsc::channel(QUEUE);
        let guests = BTreeMap::new();
        let mut broker = Self { store, spawner, settings, guests, prepared, heard };
        broker.look_at_all().await;
        ready();
        loop {
            let next_deadline = broker.guests.values().filter_map(|guest| guest.deadline).min();
            tokio::select! {
                path = devices.next() => broker.look_at(&path).await,
                _ = deaths.next() => broker.look_for_the_dead().await,
                Some((place, prepared)) = from_preparation.recv() => broker.take_prepared(place, prepared).await,
                Some((domid, heard)) = from_workers.recv() => broker.hear(domid, heard).await,
                Some(request) = requests.recv() => match request {
                    Request::List(reply) => broker.list(reply),
                    Request::Stop => return Ok(broker.in_use()),
                },
                () = tokio::time::sleep_until(next_deadline.unwrap_or_else(Instant::now)), if next_deadline.is_some() =>
                    broker.press_the_overdue().await,
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

/// What is seen in xenstore.
impl<S: Spawner> Broker<S> {
    /// Looks at the device that a path belongs to; at all, if it belongs to none.
    async fn look_at(&mut self, path: &str) {
        tracing::trace!(name: "broker.event", path);
        match Place::of_path(path) {
            Some(place) => self.look_at_place(place).await,
            None => self.look_at_all().await,
        }
    }

    /// Looks at every device there is, and at every one known that may be gone.
    async fn look_at_all(&mut self) {
        let mut places = match nodes::list(&self.store).await {
            Ok(places) => places,
            Err(error) => return postponed(&error),
        };
        for (domid, guest) in &self.guests {
            places.extend(guest.lifecycle.devices().map(|(id, _)| Place { domid: *domid, id }));
        }
        places.sort_unstable();
        places.dedup();
        for place in places {
            self.look_at_place(place).await;
        }
    }

    async fn look_at_place(&mut self, place: Place) {
        match nodes::look(&self.store, place).await {
            Ok(Some(sight)) => self.happened(place.domid, Event::Seen(place.id, sight)).await,
            Ok(None) => tracing::warn!(name: "broker.odd_state", domid = place.domid, device = %place.id,
                "The state of a device in xenstore is none that a toolstack writes; leaving it alone"),
            Err(error) => postponed(&error),
        }
    }

    /// Some domain died; xenstore does not say which.
    async fn look_for_the_dead(&mut self) {
        for domid in self.guests.keys().copied().collect::<Vec<_>>() {
            match self.store.is_domain_introduced(domid).await {
                Ok(true) => {}
                Ok(false) => self.happened(domid, Event::DomainGone).await,
                Err(error) => return postponed(&error),
            }
        }
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
                guest.settle(self.settings.closing_patience);
            }
        }
        if self.guests.get(&domid).is_some_and(|guest| guest.lifecycle.is_over()) {
            self.guests.remove(&domid);
        }
    }

    /// Does it; what comes of it at once is an event, too.
    async fn act(&mut self, domid: u16, action: Action) -> Option<Event> {
        tracing::debug!(name: "broker.act", domid, ?action);
        match action {
            Action::Prepare(id) => self.prepare(Place { domid, id }).await,
            Action::Attach(id) => return self.attach(domid, id),
            Action::Detach(id) => self.tell(domid, &Order::Detach { id }),
            Action::StopWorker => self.tell(domid, &Order::Stop),
            Action::KillWorker => {
                tracing::error!(name: "broker.overdue", domid,
                    "The worker of a guest did not let go of its devices in time, and is killed");
                self.kill(domid, "it was killed because it did not let go of its devices in time");
            }
            Action::Publish(id, news) => self.publish(Place { domid, id }, &news).await,
            Action::Report(id, trouble) => {
                self.learn_name(domid).await;
                report(Place { domid, id }, &trouble);
            }
        }
        None
    }

    async fn prepare(&mut self, place: Place) {
        let name = self.learn_name(place.domid).await;
        tracing::info!(name: "broker.new", domid = place.domid, guest = name, device = %place.id, "A new device");
        let (store, configurations) = (self.store.clone(), self.settings.configurations.clone());
        let done = self.prepared.clone();
        tokio::spawn(async move {
            let prepared = prepare::prepare(&store, &configurations, place).await;
            // No receiver means that the broker has ended.
            let _ = done.send((place, prepared)).await;
        });
    }

    /// For people; a guest is served all the same if it has none.
    async fn learn_name(&mut self, domid: u16) -> Option<String> {
        let guest = self.guests.entry(domid).or_default();
        if guest.name.is_none() {
            guest.name = nodes::guest_name(&self.store, domid).await.ok().and_then(|names| names.name);
        }
        guest.name.clone()
    }

    fn attach(&mut self, domid: u16, id: DeviceId) -> Option<Event> {
        let guest = self.guests.get_mut(&domid)?;
        let Prepared { device, descriptors } = guest.prepared.remove(&id)?;
        if guest.worker.is_none() {
            let spawned = self.spawner.spawn(domid);
            match spawned.and_then(|spawned| Ok(Worker::watch(domid, spawned, self.heard.clone())?)) {
                Ok(worker) => guest.worker = Some(worker),
                Err(error) => return Some(Event::WorkerEnded(format!("{error:#}"))),
            }
        }
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        guest.worker.as_ref()?.tell(&Order::Attach { device: device.clone() }, &descriptors);
        guest.devices.insert(id, device);
        None
    }

    async fn publish(&self, place: Place, news: &News) {
        let Place { domid, id } = place;
        match news {
            News::Ready => tracing::info!(name: "broker.ready", domid, device = %id, "The guest can use the device"),
            News::Closed => tracing::info!(name: "broker.closed", domid, device = %id, "The device is closed"),
            News::Failed(reason) => {
                tracing::error!(name: "broker.refused", domid, device = %id, reason, "The device cannot be served");
            }
        }
        if let Err(error) = nodes::publish(&self.store, place, news).await {
            postponed(&error);
        }
    }

    async fn take_prepared(&mut self, place: Place, prepared: anyhow::Result<Prepared>) {
        let Place { domid, id } = place;
        // Otherwise the guest was faster to go than its image to open.
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        let event = match prepared {
            Ok(prepared) => {
                guest.prepared.insert(id, prepared);
                Event::Prepared(id)
            }
            Err(error) => Event::Refused(id, format!("{error:#}")),
        };
        self.happened(domid, event).await;
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
            Heard::Answer(Answer::Unable { reason }) => {
                guest.last_words = Some(reason);
                return;
            }
            Heard::Answer(Answer::Report(report)) => return guest.pass_report_on(&report),
            Heard::Answer(Answer::Attached { id }) => Event::Attached(id),
            Heard::Answer(Answer::Refused { id, reason }) => Event::Refused(id, reason),
            Heard::Answer(Answer::Detached { id }) => Event::Detached(id),
            Heard::Ended(how) => Event::WorkerEnded(guest.bury_worker(how)),
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

fn report(place: Place, trouble: &Trouble) {
    let Place { domid, id } = place;
    match trouble {
        Trouble::Foreign => tracing::warn!(name: "broker.foreign", domid, device = %id,
            "A former xen-virtio served this device, and it cannot be taken over. If its worker still runs, the guest is \
             well; else the guest hangs when it uses the device: end it with `xl destroy {domid}` and create it again"),
        Trouble::WorkerDied(how) => tracing::error!(name: "broker.worker_died", domid, device = %id, how,
            "The worker that served this device died: the guest hangs as soon as it uses it. \
             End the guest with `xl destroy {domid}` and create it again"),
    }
}

/// Xenstore will tell everything again once it is back.
fn postponed(error: &xenstore::Error) {
    tracing::warn!(name: "broker.postponed", %error, "Xenstore did not answer; looking again when it does");
}
