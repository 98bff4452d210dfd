//! One guest as the broker keeps it: where its devices are in life, its worker, and who waits for its report.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use virtio_backend::{Operation, Record};

use super::ask::Outcome;
use super::deaths::Deaths;
use super::notes::Notes;
use super::prepare::Prepared;
use super::reach::Turns;
use super::worker::Worker;
use crate::config::GuestName;
use crate::model::{Device, DeviceId, Place, WINDOW_BYTES};
use crate::protocol::{Former, Order, Report, ReservedWindow};
use crate::toolstack::lifecycle::{Lifecycle, Stage};

/// A guest.
#[derive(Default)]
pub struct Guest {
    /// What people call it.
    pub names: GuestName,
    /// Where its devices are.
    pub lifecycle: Lifecycle,
    /// Its worker.
    pub worker: Option<Arc<Worker>>,
    /// Why its worker cannot serve it, by its own word.
    pub last_words: Option<String>,
    /// What is ready for the worker.
    pub prepared: BTreeMap<DeviceId, Prepared>,
    /// What the worker was given, and the next one will be if it dies.
    pub devices: BTreeMap<DeviceId, Served>,
    /// Whose turn it is to have a connection made.
    pub turns: Turns,
    /// The worker's IOREQ server, by its own word.
    pub server: Option<u16>,
    /// Whether its worker goes on with a server that another made.
    pub follows: bool,
    /// The windows that this server has or is to have.
    pub windows: BTreeMap<DeviceId, Place>,
    /// What a broker that follows would find of it.
    pub noted: Option<Notes>,
    /// How its workers died.
    pub deaths: Deaths,
    /// When the next worker is to be started, if that has to wait.
    pub follow_at: Option<Instant>,
    /// Who waits for the worker's next report.
    pub report_to: Vec<oneshot::Sender<Report>>,
    /// Who waits for what comes of an operation; a worker answers in order.
    pub outcome_to: Vec<(DeviceId, oneshot::Sender<Outcome>)>,
    /// When patience with what is closing ends.
    pub deadline: Option<Instant>,
}

/// A device that a worker was given. What is open stays open until it is let go of, whatever becomes of workers: locks are
/// held, and taps, terminals and sockets see nothing of it.
pub struct Served {
    /// Its description.
    pub device: Device,
    /// As in [`Prepared`].
    pub descriptors: Vec<OwnedFd>,
    /// What its workers leave to each other. Only they look into it, each by an open file description of its own: this one
    /// goes to none of them.
    pub record: Record,
}

/// A guest as `xen-virtio list` shows it, before the worker has added what it knows.
#[derive(Clone, Debug, Serialize)]
pub struct GuestView {
    /// Its domain id.
    pub domid: u16,
    /// Its name.
    pub name: Option<String>,
    /// How many workers were started for it where one had died.
    pub restarts: u64,
    /// Its devices.
    pub devices: Vec<DeviceView>,
}

/// A device as `xen-virtio list` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceView {
    /// The toolstack's number for it.
    pub id: DeviceId,
    /// How far it has come with the toolstack.
    pub stage: &'static str,
    /// What it is, if that is known.
    pub device: Option<Device>,
}

impl Guest {
    /// Brings everything that follows from the lifecycle up to date with it; what is closing may take this long. Gives
    /// the devices that are not going to be served any more.
    #[must_use]
    pub fn settle(&mut self, patience: Duration) -> Vec<Device> {
        let Self { lifecycle, prepared, devices, turns, deadline, .. } = self;
        // What is open may be locked: nobody keeps what is not going to be served.
        let unwanted = prepared.extract_if(.., |id, _| lifecycle.stage(*id) != Some(&Stage::Prepared));
        let mut over: Vec<_> = unwanted.map(|(_, prepared)| prepared.device).collect();
        let is_over = |id: DeviceId| matches!(lifecycle.stage(id), None | Some(Stage::Vacant | Stage::Dead(_)));
        // What it has open goes here.
        over.extend(devices.extract_if(.., |id, _| is_over(*id)).map(|(_, served)| served.device));
        turns.retain(|id| devices.contains_key(&id));
        *deadline = lifecycle.is_closing().then(|| deadline.unwrap_or_else(|| Instant::now() + patience));
        over
    }

    /// Notes that the worker is to have a device's window; where another's is it will refuse to.
    pub fn note_window(&mut self, id: DeviceId, place: Place) {
        let is_in_the_way = |other: &Place| other.base.abs_diff(place.base) < WINDOW_BYTES;
        if !self.windows.iter().any(|(other, taken)| *other != id && is_in_the_way(taken)) {
            self.windows.insert(id, place);
        }
    }

    /// What a worker that died has left for the next one.
    pub fn former(&self) -> Option<Former> {
        let windows = self.windows.iter().map(|(id, place)| ReservedWindow { id: *id, place: *place });
        Some(Former { server: self.server?, windows: windows.collect() })
    }

    /// Has its worker do something to a device; what comes of it is told to `reply`.
    pub fn operate(&mut self, id: DeviceId, operation: Operation, reply: oneshot::Sender<Outcome>) {
        match &self.worker {
            Some(worker) => {
                worker.tell(&Order::Operate { id, operation }, &[]);
                self.outcome_to.push((id, reply));
            }
            // Who asked may have lost patience.
            None => drop(reply.send(Err("Nobody serves this device at the moment".to_owned()))),
        }
    }

    /// Tells who waits what came of an operation.
    pub fn pass_outcome_on(&mut self, id: DeviceId, outcome: Outcome) {
        if let Some(waiting) = self.outcome_to.iter().position(|(of, _)| *of == id) {
            // Who asked may have lost patience.
            let _ = self.outcome_to.remove(waiting).1.send(outcome);
        }
    }

    /// Has its worker report; the receiver ends without one if there is no worker.
    pub fn ask_for_report(&mut self) -> oneshot::Receiver<Report> {
        let (report_to, report) = oneshot::channel();
        if let Some(worker) = &self.worker {
            worker.tell(&Order::Report, &[]);
            self.report_to.retain(|waiting| !waiting.is_closed());
            self.report_to.push(report_to);
        }
        report
    }

    /// Gives its worker's report to all who wait for it.
    pub fn pass_report_on(&mut self, report: &Report) {
        for waiting in self.report_to.drain(..) {
            // Who asked may have lost patience.
            let _ = waiting.send(report.clone());
        }
    }

    /// Its worker cannot serve it, and says why. One that followed no other has destroyed its server.
    pub fn unable(&mut self, reason: String) {
        self.last_words = Some(reason);
        if !self.follows {
            self.server = None;
        }
    }

    /// Its worker has ended; why, as far as it is known.
    pub fn bury_worker(&mut self, how: String) -> String {
        self.worker = None;
        self.report_to.clear();
        self.outcome_to.clear();
        self.last_words.take().unwrap_or(how)
    }

    /// What there is to show of it.
    pub fn view(&self, domid: u16) -> GuestView {
        let devices = self.lifecycle.devices().map(|(id, stage)| DeviceView {
            id,
            stage: word_for(stage),
            device: self.devices.get(&id).map(|served| served.device.clone()),
        });
        let (name, restarts) = (self.names.name.clone(), self.deaths.followed());
        GuestView { domid, name, restarts, devices: devices.collect() }
    }
}

fn word_for(stage: &Stage) -> &'static str {
    match stage {
        Stage::Preparing | Stage::Prepared | Stage::Attaching | Stage::Retrying => "starting",
        Stage::Serving => "serving",
        Stage::Following => "restarting",
        Stage::GivenUp => "given up",
        Stage::Detaching(_) | Stage::Detached(_) => "closing",
        Stage::Dead(_) | Stage::Vacant => "failed",
        Stage::Foreign => "left to a former worker",
    }
}
