//! The worker's main thread: what the broker orders, and what other threads leave to do.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtio_backend::Record;

use super::errands::Errands;
use super::wiring::Guest;
use crate::channel::{Channel, ChannelError, Received};
use crate::logging::HeldBack;
use crate::model::{Device, DeviceId, Grants, Place};
use crate::protocol::{Answer, Counter, Order};

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
    /// When to unmap what went stale.
    unmap_at: Option<Instant>,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Next {
    Serve,
    Stop,
}

impl Service {
    /// Serves `guest`, whose errands and held back log lines these are.
    pub(super) fn new(guest: Guest, errands: Errands, held_back: HeldBack) -> Self {
        Self { guest, errands, held_back, unmap_at: None }
    }

    /// Serves until told to stop, or, should the broker die, until nobody needs it.
    ///
    /// # Errors
    /// The system does not let it wait, or a vCPU still waits in the IOREQ server at the end.
    pub(super) fn run(mut self, channel: Channel) -> anyhow::Result<()> {
        if self.obey_all(&channel)? == Next::Serve {
            drop(channel);
            tracing::warn!(name: "worker.orphan", "The broker is gone; serving the guest until it ends");
            self.serve_as_orphan()?;
        }
        self.guest.stop()
    }

    /// `Next::Serve`: there is no broker any more.
    fn obey_all(&mut self, channel: &Channel) -> anyhow::Result<Next> {
        loop {
            self.wait(Some(channel), None)?;
            self.do_errands(Some(channel));
            match channel.try_receive() {
                Ok(Some((order, descriptors))) => {
                    if self.obey(channel, order, descriptors) == Next::Stop {
                        return Ok(Next::Stop);
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

    fn serve_as_orphan(&mut self) -> anyhow::Result<()> {
        while !self.guest.is_idle() && self.guest.is_alive() {
            self.wait(None, Some(ORPHAN_LOOK))?;
            self.do_errands(None);
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&self, channel: Option<&Channel>, at_most: Option<Duration>) -> anyhow::Result<()> {
        let until_unmap = self.unmap_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = [until_unmap, at_most].into_iter().flatten().min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let bell = self.errands.as_fd();
        let mut sources = vec![PollFd::new(&bell, PollFlags::IN)];
        sources.extend(channel.map(|channel| PollFd::new(channel, PollFlags::IN)));
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).context("Cannot wait for orders"),
        }
    }

    fn do_errands(&mut self, channel: Option<&Channel>) {
        self.errands.silence();
        for id in self.errands.take_at_rest() {
            let used = self.guest.remove(id);
            if let Some(channel) = channel {
                say(channel, &Answer::Detached { id, used });
            }
        }
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
            Order::Report => {
                let mut report = self.guest.report();
                report.counters.push(Counter::new("log_lines_held_back", self.held_back.count()));
                say(channel, &Answer::Report(report));
            }
            Order::Stop => return Next::Stop,
        }
        Next::Serve
    }

    fn give_up(&mut self, id: DeviceId, place: Place, descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        self.guest.give_up(id, place, &record(descriptors.into_iter().next())?)
    }

    fn attach(&mut self, device: &Device, mut descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        let record = record(descriptors.pop())?;
        let gntdev = match device.grants {
            Grants::Never => None,
            Grants::Allowed | Grants::Only => {
                Some(descriptors.pop().context("No way to the guest's grants came along")?)
            }
        };
        self.guest.attach(device, device.model.make(descriptors)?, gntdev, record)
    }
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
    if let Err(error) = channel.send(answer, &[]) {
        tracing::warn!(name: "worker.unheard", %error, "The broker does not listen");
    }
}
