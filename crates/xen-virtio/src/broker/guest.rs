//! One guest as the broker keeps it: where its devices are in life, its worker, and who waits for its report.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use virtio_backend::Operation;

use super::ask::Outcome;
use super::prepare::Prepared;
use super::worker::Worker;
use crate::config::GuestName;
use crate::model::{Device, DeviceId};
use crate::protocol::{Order, Report};
use crate::toolstack::lifecycle::{Lifecycle, Stage};

/// A guest.
#[derive(Default)]
pub struct Guest {
    /// What people call it.
    pub names: GuestName,
    /// Where its devices are.
    pub lifecycle: Lifecycle,
    /// Its worker.
    pub worker: Option<Worker>,
    /// Why its worker cannot serve it, by its own word.
    pub last_words: Option<String>,
    /// What is ready for the worker.
    pub prepared: BTreeMap<DeviceId, Prepared>,
    /// What the worker was given.
    pub devices: BTreeMap<DeviceId, Device>,
    /// Who waits for the worker's next report.
    pub report_to: Vec<oneshot::Sender<Report>>,
    /// Who waits for what comes of an operation; a worker answers in order.
    pub outcome_to: Vec<(DeviceId, oneshot::Sender<Outcome>)>,
    /// When patience with what is closing ends.
    pub deadline: Option<Instant>,
}

/// A guest as `xen-virtio list` shows it, before the worker has added what it knows.
#[derive(Clone, Debug, Serialize)]
pub struct GuestView {
    /// Its domain id.
    pub domid: u16,
    /// Its name.
    pub name: Option<String>,
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
        let Self { lifecycle, prepared, devices, deadline, .. } = self;
        // What is open may be locked: nobody keeps what is not going to be served.
        let unwanted = prepared.extract_if(.., |id, _| lifecycle.stage(*id) != Some(&Stage::Prepared));
        let mut over: Vec<_> = unwanted.map(|(_, prepared)| prepared.device).collect();
        let is_over = |id: DeviceId| matches!(lifecycle.stage(id), None | Some(Stage::Vacant | Stage::Dead(_)));
        over.extend(devices.extract_if(.., |id, _| is_over(*id)).map(|(_, device)| device));
        *deadline = lifecycle.is_closing().then(|| deadline.unwrap_or_else(|| Instant::now() + patience));
        over
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
            device: self.devices.get(&id).cloned(),
        });
        GuestView { domid, name: self.names.name.clone(), devices: devices.collect() }
    }
}

fn word_for(stage: &Stage) -> &'static str {
    match stage {
        Stage::Preparing | Stage::Prepared | Stage::Attaching => "starting",
        Stage::Serving => "serving",
        Stage::Detaching(_) | Stage::Detached(_) => "closing",
        Stage::Dead(_) | Stage::Vacant => "failed",
        Stage::Foreign => "left to a former worker",
    }
}
