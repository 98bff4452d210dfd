//! One guest as the broker keeps it: where its devices are in life, its worker, and who waits for its report.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::prepare::Prepared;
use super::worker::Worker;
use crate::model::{Device, DeviceId};
use crate::protocol::{Order, Report};
use crate::toolstack::lifecycle::{Lifecycle, Stage};

/// A guest.
#[derive(Default)]
pub struct Guest {
    /// For people.
    pub name: Option<String>,
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
    /// Brings everything that follows from the lifecycle up to date with it; what is closing may take this long.
    pub fn settle(&mut self, patience: Duration) {
        let Self { lifecycle, prepared, devices, deadline, .. } = self;
        // An image that is open is locked: nobody keeps one that is not going to be served.
        prepared.retain(|id, _| lifecycle.stage(*id) == Some(&Stage::Prepared));
        devices.retain(|id, _| lifecycle.stage(*id).is_some());
        *deadline = lifecycle.is_closing().then(|| deadline.unwrap_or_else(|| Instant::now() + patience));
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
        self.last_words.take().unwrap_or(how)
    }

    /// What there is to show of it.
    pub fn view(&self, domid: u16) -> GuestView {
        let devices = self.lifecycle.devices().map(|(id, stage)| DeviceView {
            id,
            stage: word_for(stage),
            device: self.devices.get(&id).cloned(),
        });
        GuestView { domid, name: self.name.clone(), devices: devices.collect() }
    }
}

fn word_for(stage: &Stage) -> &'static str {
    match stage {
        Stage::Preparing | Stage::Prepared | Stage::Attaching => "starting",
        Stage::Serving => "serving",
        Stage::Detaching(_) | Stage::Detached(_) => "closing",
        Stage::Dead(_) => "failed",
        Stage::Foreign => "left to a former worker",
    }
}
