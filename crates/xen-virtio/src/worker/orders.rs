//! The worker's main thread: what the broker orders, and what other threads leave to do.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtio_backend::Record;

use super::errands::Errands;
use super::reach::{Questions, ThroughBroker};
use super::wiring::Guest;
use crate::channel::{Channel, ChannelError, Received};
use crate::door::Door;
use crate::logging::HeldBack;
use crate::model::{Device, DeviceId, Grants, Place};
use crate::protocol::{Answer, Counter, Order, VERSION};

/// From the first invalidation to unmapping what went stale: a guest that balloons invalidates thousands of times in a
/// row, and the lanes map again what they need after each time.
const SETTLE: Duration = Duration::from_millis(10);
/// How often a worker without a broker looks whether its guest still lives.
const ORPHAN_LOOK: Duration = Duration::from_secs(1);

/// A guest being served, by order of a broker.
pub(super) struct Service {
    guest: Guest,
    errands: Errands,
    held_back: HeldBack,
    /// Where the next broker comes.
    door: Door,
    /// What came with each device, to be handed over to the next broker.
    kept: BTreeMap<DeviceId, Vec<OwnedFd>>,
    /// What devices ask the broker.
    questions: Questions,
    /// When to unmap what went stale.
    unmap_at: Option<Instant>,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Next {
    Serve,
    Stop,
    Yield,
}

impl Service {
    /// Serves `guest`, whose errands and held back log lines these are.
    pub(super) fn new(guest: Guest, errands: Errands, door: Door, held_back: HeldBack) -> Self {
        Self { guest, errands, held_back, door, kept: BTreeMap::new(), questions: Questions::default(), unmap_at: None }
    }

    /// Serves until told to stop, or to yield; or, should the broker die and none come after it, until nobody needs it.
    ///
    /// # Errors
    /// The system does not let it wait, or a vCPU still waits in the IOREQ server at the end.
    pub(super) fn run(mut self, mut channel: Channel) -> anyhow::Result<()> {
        loop {
            match self.obey_all(&channel)? {
                Next::Stop => return self.guest.stop(),
                Next::Yield => {
                    tracing::info!(name: "worker.yields", "Another worker takes this one's place");
                    // What would be dropped is taken from under a running guest; the end of the process leaves it.
                    mem::forget(self);
                    return Ok(());
                }
                Next::Serve => {}
            }
            self.questions.give_up();
            tracing::warn!(name: "worker.orphan", "The broker is gone; serving the guest until it ends, or the next one comes");
            match self.serve_as_orphan()? {
                Some(next) => channel = next,
                None => return self.guest.stop(),
            }
        }
    }

    /// `Next::Serve`: there is no broker any more.
    fn obey_all(&mut self, channel: &Channel) -> anyhow::Result<Next> {
        loop {
            self.wait(Some(channel), None)?;
            self.do_errands(Some(channel));
            match channel.try_receive() {
                Ok(Some((order, descriptors))) => {
                    let next = self.obey(channel, order, descriptors);
                    if next != Next::Serve {
                        return Ok(next);
                    }
                }
                Ok(None) => return Ok(Next::Serve),
                Err(ChannelError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::error!(name: "worker.babble", %error, "The broker said what no broker says");
                    return Ok(Next::Serve);
                }
            }
        }
    }

    /// Gives the way to the next broker; none if there is nobody to serve any more.
    fn serve_as_orphan(&mut self) -> anyhow::Result<Option<Channel>> {
        while !self.guest.is_idle() && self.guest.is_alive() {
            self.wait(None, Some(ORPHAN_LOOK))?;
            self.do_errands(None);
            if let Some(next) = self.door.open().context("Cannot open the door to the next broker")? {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    /// Sleeps until there is something to do. Without a channel that may be a broker who knocks.
    fn wait(&self, channel: Option<&Channel>, at_most: Option<Duration>) -> anyhow::Result<()> {
        let until_unmap = self.unmap_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = [until_unmap, at_most].into_iter().flatten().min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let broker = channel.map_or(self.door.as_fd(), AsFd::as_fd);
        let mut sources = [self.errands.as_fd(), broker].map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN));
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).context("Cannot wait for orders"),
        }
    }

    fn do_errands(&mut self, channel: Option<&Channel>) {
        self.errands.silence();
        for id in self.errands.take_at_rest() {
            let used = self.guest.remove(id);
            self.kept.remove(&id);
            if let Some(channel) = channel {
                say(channel, &Answer::Detached { id, used });
            }
        }
        self.questions.pass_on(self.errands.take_questions(), channel);
        if self.errands.take_stale() {
            self.unmap_at.get_or_insert_with(|| Instant::now() + SETTLE);
        }
        if self.unmap_at.is_some_and(|at| at <= Instant::now()) {
            self.unmap_at = None;
            self.guest.unmap_stale();
        }
    }

    fn obey(&mut self, channel: &Channel, order: Order, descriptors: Vec<OwnedFd>) -> Next {
        tracing::debug!(name: "worker.order", ?order);
        match order {
            Order::Start { .. } => tracing::error!(name: "worker.restart", "The broker started twice; ignored"),
            Order::Reserve { id, place } => {
                if let Err(error) = self.guest.reserve(id, place) {
                    say(channel, &Answer::Refused { id, reason: format!("{error:#}") });
                }
            }
            Order::Vacate { id } => self.guest.vacate(id),
            Order::Operate { id, operation } => {
                say(channel, &Answer::Operated { id, outcome: self.guest.operate(id, operation) });
            }
            Order::Attach { device } => {
                let id = device.id;
                say(
                    channel,
                    &match self.attach(&device, descriptors) {
                        Ok(()) => Answer::Attached { id },
                        Err(error) => Answer::Refused { id, reason: format!("{error:#}") },
                    },
                );
            }
            Order::GiveUp { id, place } => {
                if let Err(error) = self.give_up(id, place, descriptors) {
                    say(channel, &Answer::Refused { id, reason: format!("{error:#}") });
                }
            }
            Order::Detach { id } => self.guest.stop_device(id),
            Order::Reached { id: _, ticket, outcome } => {
                self.questions.hear(ticket, outcome, descriptors);
                // There is room for the next one.
                self.questions.pass_on(Vec::new(), Some(channel));
            }
            Order::Report => {
                let mut report = self.guest.report();
                report.counters.push(Counter::new("log_lines_held_back", self.held_back.count()));
                say(channel, &Answer::Report(report));
            }
            Order::HandOver { version } => self.hand_over(channel, version),
            Order::Yield => return Next::Yield,
            Order::Stop => return Next::Stop,
        }
        Next::Serve
    }

    fn give_up(&mut self, id: DeviceId, place: Place, descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        let copies = copies(&descriptors)?;
        self.guest.give_up(id, place, &record(descriptors.into_iter().next())?)?;
        self.kept.insert(id, copies);
        Ok(())
    }

    fn hand_over(&self, channel: &Channel, version: u32) {
        if version != VERSION {
            let reason = format!("It speaks version {VERSION}, and the new xen-virtio {version}");
            return say(channel, &Answer::Unable { reason });
        }
        for (id, descriptors) in &self.kept {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            say_with(channel, &Answer::Holds { id: *id }, &descriptors);
        }
        say(channel, &Answer::HandedOver);
    }

    fn attach(&mut self, device: &Device, mut descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        let copies = copies(&descriptors)?;
        let record = record(descriptors.pop())?;
        let gntdev = match device.grants {
            Grants::Never => None,
            Grants::Allowed | Grants::Only => {
                Some(descriptors.pop().context("No way to the guest's grants came along")?)
            }
        };
        let reach = Arc::new(ThroughBroker { errands: self.errands.clone(), id: device.id });
        self.guest.attach(device, device.model.make(descriptors, reach)?, gntdev, record)?;
        self.kept.insert(device.id, copies);
        Ok(())
    }
}

fn copies(descriptors: &[OwnedFd]) -> anyhow::Result<Vec<OwnedFd>> {
    let copies = descriptors.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>();
    copies.context("Cannot keep a device's descriptors for who comes next")
}

fn record(descriptor: Option<OwnedFd>) -> anyhow::Result<Record> {
    Ok(Record::of(descriptor.context("No record of the device came along")?)?)
}

/// Waits for an order; `None` is the end of the broker.
pub(super) fn receive(channel: &Channel) -> anyhow::Result<Option<Received<Order>>> {
    loop {
        match poll(&mut [PollFd::new(channel, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("Cannot wait for orders"),
        }
        match channel.try_receive() {
            Err(ChannelError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            received => return Ok(received?),
        }
    }
}

/// A broker that does not listen is about to be replaced, and the next one asks.
fn say(channel: &Channel, answer: &Answer) {
    say_with(channel, answer, &[]);
}

fn say_with(channel: &Channel, answer: &Answer, descriptors: &[BorrowedFd<'_>]) {
    if let Err(error) = channel.send(answer, descriptors) {
        tracing::warn!(name: "worker.unheard", %error, "The broker does not listen");
    }
}
