//! The life of a guest's devices: what happened goes in, what to do comes out.
//!
//! Pure and without time, so that tests can walk every path. The broker feeds it what it sees in xenstore and hears
//! from the worker, and carries out the actions in order. Five promises live here: nothing is ready before its window
//! is claimed; where nobody waits for that, the window is claimed before anything else is done; nothing is closed while
//! any of the guest's memory is held for it; every end is reached whether the toolstack asks for it, the guest just
//! disappears, or the worker dies; and a worker that dies under devices that the guest may use is followed by another.

use std::collections::BTreeMap;

use super::events::{Action, Event, News, Sight, Trouble};
use crate::model::DeviceId;

/// The devices of one guest, and its worker.
#[derive(Debug, Default)]
pub struct Lifecycle {
    devices: BTreeMap<DeviceId, Stage>,
    worker: Worker,
}

/// Where a device is between its two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its description is being read and what it needs opened. If the guest may run meanwhile, the worker holds its
    /// window.
    Preparing,
    /// Waits for the guest's former worker to end, or for the next one to come.
    Prepared,
    /// The worker is to serve it and has not said that it does.
    Attaching,
    /// A worker died while it was to serve it for the first time, and the next one is to. If that dies, too, the device may
    /// be why, and is refused for the others' sake.
    Retrying,
    /// The guest may use it.
    Serving,
    /// The worker that served it died. The guest may use it all the same: what it does waits for the next one.
    Following,
    /// Workers died one after the other. The last of them answers for it and does nothing.
    GivenUp,
    /// The worker is to let go of it and has not said that it did.
    Detaching(Then),
    /// Let go of, as the last one: waits for the worker to end, which proves that nothing is mapped.
    Detached(Then),
    /// Not served, and will not be; the worker answers for its window, so that the guest finds no device there and
    /// lives.
    Vacant,
    /// Not served, and will not be. The reason, as long as the toolstack waits for it.
    Dead(Option<String>),
    /// Served, if at all, by the worker of a former broker.
    Foreign,
}

/// What becomes of a device that is let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The toolstack waits to hear of it.
    Close,
    /// Its directory is gone.
    Forget,
    /// The domain is gone, its directory still there; what else is asked of it must find it.
    Bury,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Worker {
    #[default]
    Absent,
    Running,
    /// Told to end.
    Stopping,
    /// It died, and another is to be started.
    Died,
}

impl Lifecycle {
    /// Of a guest that a former broker served. Its worker is to have [died](Event::WorkerDied).
    #[must_use]
    pub fn inherited(devices: impl IntoIterator<Item = (DeviceId, Stage)>) -> Self {
        Self { devices: devices.into_iter().collect(), worker: Worker::Running }
    }

    /// What to do now that this happened.
    #[must_use]
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut todo = Vec::new();
        match event {
            Event::Seen(id, sight) => self.seen(id, sight, &mut todo),
            Event::Prepared(id) => self.prepared(id, &mut todo),
            Event::Refused(id, reason) => self.refused(id, reason, &mut todo),
            Event::Attached(id) => self.attached(id, &mut todo),
            Event::Detached(id) => self.detached(id, &mut todo),
            Event::WorkerEnded(how) => self.worker_ended(&how, &mut todo),
            Event::WorkerDied(how) | Event::WorkersDie(how) if self.worker == Worker::Stopping => {
                self.worker_ended(&how, &mut todo);
            }
            Event::WorkerDied(how) => self.worker_died(&how, &mut todo),
            Event::WorkersDie(how) => self.workers_die(&how, &mut todo),
            Event::WorkerFollows => self.worker_follows(&mut todo),
            Event::DomainGone => {
                for id in self.devices.keys().copied().collect::<Vec<_>>() {
                    self.let_go(id, Then::Bury, &mut todo);
                }
            }
            Event::Overdue if self.worker != Worker::Absent => todo.push(Action::KillWorker),
            Event::Overdue => {}
        }
        self.stop_idle_worker(&mut todo);
        todo
    }

    /// Whether the toolstack, or a domain that cannot end, may be waiting for a device to be let go of.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.worker == Worker::Stopping || self.devices.values().any(|stage| matches!(stage, Stage::Detaching(_)))
    }

    /// Whether the guest uses us.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.worker != Worker::Absent
    }

    /// Whether a worker died and the next is to be started.
    #[must_use]
    pub fn wants_worker(&self) -> bool {
        self.worker == Worker::Died
    }

    /// Whether a worker died and the next one does not serve all yet that it was to.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.wants_worker() || self.devices.values().any(|stage| matches!(stage, Stage::Following | Stage::Retrying))
    }

    /// Whether the worker was told to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.worker == Worker::Stopping
    }

    /// Whether the worker has, or is to have, something in this device's window.
    #[must_use]
    pub fn needs_window(&self, id: DeviceId) -> bool {
        self.stage(id).is_some_and(|stage| *stage == Stage::Prepared || stage.is_at_work(id))
    }

    /// Whether there is nothing to remember.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.devices.is_empty() && self.worker == Worker::Absent
    }

    /// Where a device is, if it is known.
    #[must_use]
    pub fn stage(&self, id: DeviceId) -> Option<&Stage> {
        self.devices.get(&id)
    }

    /// All devices known.
    pub fn devices(&self) -> impl Iterator<Item = (DeviceId, &Stage)> {
        self.devices.iter().map(|(id, stage)| (*id, stage))
    }

    fn seen(&mut self, id: DeviceId, sight: Sight, todo: &mut Vec<Action>) {
        match (sight, self.devices.get(&id)) {
            (Sight::New, None) => {
                self.devices.insert(id, Stage::Preparing);
                self.reserve(id, todo);
                todo.push(Action::Prepare(id));
            }
            // Our answer did not get through, say because xenstored was restarted.
            (Sight::New, Some(Stage::Serving | Stage::Following)) => todo.push(Action::Publish(id, News::Ready)),
            (Sight::New, Some(Stage::Dead(Some(reason)))) => {
                todo.push(Action::Publish(id, News::Failed(reason.clone())));
            }
            (Sight::Live, None) => {
                self.devices.insert(id, Stage::Foreign);
                todo.push(Action::Report(id, Trouble::Foreign));
            }
            (Sight::Closing, None) => todo.push(Action::Publish(id, News::Closed)),
            (Sight::Closing, Some(_)) => self.let_go(id, Then::Close, todo),
            (Sight::Closed | Sight::Absent, Some(_)) => self.let_go(id, Then::Forget, todo),
            (Sight::New | Sight::Live, Some(_)) | (Sight::Closed | Sight::Absent, None) => {}
        }
    }

    /// What a guest that is not waited with could touch at any moment is claimed before anything else is done.
    fn reserve(&mut self, id: DeviceId, todo: &mut Vec<Action>) {
        if !id.class.is_waited_for() && matches!(self.worker, Worker::Absent | Worker::Running) {
            self.worker = Worker::Running;
            todo.push(Action::Reserve(id));
        }
    }

    /// Brings a device to its end, from wherever it is.
    fn let_go(&mut self, id: DeviceId, then: Then, todo: &mut Vec<Action>) {
        let worker = self.worker;
        match self.devices.get_mut(&id) {
            // Whoever waits for an answer gets it, if the domain is dead by then or not.
            Some(Stage::Detaching(_) | Stage::Detached(_)) if then == Then::Bury => {}
            Some(Stage::Detaching(earlier) | Stage::Detached(earlier)) => *earlier = then,
            Some(stage) if worker == Worker::Running && stage.is_at_work(id) => {
                *stage = Stage::Detaching(then);
                todo.push(Action::Detach(id));
            }
            Some(_) => self.finish(id, then, todo),
            None => {}
        }
    }

    fn finish(&mut self, id: DeviceId, then: Then, todo: &mut Vec<Action>) {
        match then {
            Then::Bury => drop(self.devices.insert(id, Stage::Dead(None))),
            Then::Forget => drop(self.devices.remove(&id)),
            Then::Close => {
                self.devices.remove(&id);
                todo.push(Action::Publish(id, News::Closed));
            }
        }
    }

    fn prepared(&mut self, id: DeviceId, todo: &mut Vec<Action>) {
        let Some(stage @ Stage::Preparing) = self.devices.get_mut(&id) else { return };
        if matches!(self.worker, Worker::Stopping | Worker::Died) {
            *stage = Stage::Prepared;
        } else {
            *stage = Stage::Attaching;
            self.worker = Worker::Running;
            todo.push(Action::Attach(id));
        }
    }

    fn refused(&mut self, id: DeviceId, reason: String, todo: &mut Vec<Action>) {
        let worker = self.worker;
        match self.devices.get_mut(&id) {
            Some(stage @ (Stage::Preparing | Stage::Prepared | Stage::Attaching | Stage::Retrying)) => {
                *stage = match worker {
                    _ if id.class.is_waited_for() => Stage::Dead(Some(reason.clone())),
                    Worker::Running => {
                        todo.push(Action::Vacate(id));
                        Stage::Vacant
                    }
                    // The next one is told when it comes.
                    Worker::Died => Stage::Vacant,
                    Worker::Absent | Worker::Stopping => Stage::Dead(Some(reason.clone())),
                };
                todo.push(Action::Publish(id, News::Failed(reason)));
            }
            // It worked before. Its window waits for ever where nothing answers in it.
            Some(stage @ Stage::Following) => {
                *stage = Stage::GivenUp;
                todo.extend([Action::GiveUp(id), Action::Report(id, Trouble::GivenUp(reason))]);
            }
            // What was never there is let go of.
            Some(Stage::Detaching(_)) => self.detached(id, todo),
            _ => {}
        }
    }

    fn attached(&mut self, id: DeviceId, todo: &mut Vec<Action>) {
        match self.devices.get_mut(&id) {
            Some(stage @ (Stage::Attaching | Stage::Retrying)) => {
                *stage = Stage::Serving;
                todo.push(Action::Publish(id, News::Ready));
            }
            // The toolstack does not know that it was away.
            Some(stage @ Stage::Following) => *stage = Stage::Serving,
            _ => {}
        }
    }

    fn detached(&mut self, id: DeviceId, todo: &mut Vec<Action>) {
        let Some(stage) = self.devices.get_mut(&id) else { return };
        let Stage::Detaching(then) = *stage else { return };
        *stage = Stage::Detached(then);
        if self.worker_has_work() {
            self.finish(id, then, todo);
        }
    }

    /// It leaves nothing that another could go on with.
    fn worker_ended(&mut self, how: &str, todo: &mut Vec<Action>) {
        let was_told_to = self.worker == Worker::Stopping;
        self.worker = Worker::Absent;
        for (id, stage) in self.devices.clone() {
            match stage {
                Stage::Preparing if was_told_to => self.reserve(id, todo),
                Stage::Preparing if id.class.is_waited_for() => {}
                Stage::Preparing | Stage::Attaching | Stage::Retrying => self.refused(id, how.to_owned(), todo),
                Stage::Vacant => self.set(id, Stage::Dead(None)),
                Stage::Serving | Stage::Following | Stage::GivenUp => {
                    self.set(id, Stage::Dead(None));
                    todo.push(Action::Report(id, Trouble::WorkerDied(how.to_owned())));
                }
                Stage::Detaching(then) | Stage::Detached(then) => self.finish(id, then, todo),
                Stage::Prepared => {
                    self.set(id, Stage::Attaching);
                    self.worker = Worker::Running;
                    todo.push(Action::Attach(id));
                }
                Stage::Dead(_) | Stage::Foreign => {}
            }
        }
    }

    /// The next one goes on with all that it did.
    fn worker_died(&mut self, how: &str, todo: &mut Vec<Action>) {
        self.worker = Worker::Died;
        for (id, stage) in self.devices.clone() {
            match stage {
                Stage::Attaching => self.set(id, Stage::Retrying),
                Stage::Retrying => self.refused(id, how.to_owned(), todo),
                Stage::Serving => self.set(id, Stage::Following),
                // What it held went with it.
                Stage::Detaching(then) | Stage::Detached(then) => self.finish(id, then, todo),
                _ => {}
            }
        }
        self.want_worker(todo);
    }

    /// The next one does nothing but answer, so that no vCPU stands still for ever.
    fn workers_die(&mut self, how: &str, todo: &mut Vec<Action>) {
        self.worker = Worker::Died;
        for (id, stage) in self.devices.clone() {
            match stage {
                Stage::Attaching | Stage::Retrying => self.refused(id, how.to_owned(), todo),
                Stage::Serving | Stage::Following => {
                    self.set(id, Stage::GivenUp);
                    todo.push(Action::Report(id, Trouble::GivenUp(how.to_owned())));
                }
                Stage::Detaching(then) | Stage::Detached(then) => self.finish(id, then, todo),
                _ => {}
            }
        }
        self.want_worker(todo);
    }

    fn want_worker(&mut self, todo: &mut Vec<Action>) {
        if self.worker == Worker::Died && self.worker_has_work() {
            todo.push(Action::FollowWorker);
        }
    }

    /// Tells it all that the one before was told, and what has come since.
    fn worker_follows(&mut self, todo: &mut Vec<Action>) {
        if self.worker != Worker::Died {
            return;
        }
        self.worker = Worker::Running;
        for (id, stage) in self.devices.clone() {
            match stage {
                Stage::Preparing => self.reserve(id, todo),
                Stage::Prepared => {
                    self.set(id, Stage::Attaching);
                    todo.push(Action::Attach(id));
                }
                Stage::Retrying | Stage::Following => todo.push(Action::Attach(id)),
                Stage::GivenUp => todo.push(Action::GiveUp(id)),
                Stage::Vacant => todo.push(Action::Vacate(id)),
                _ => {}
            }
        }
    }

    fn set(&mut self, id: DeviceId, stage: Stage) {
        self.devices.insert(id, stage);
    }

    fn stop_idle_worker(&mut self, todo: &mut Vec<Action>) {
        match self.worker {
            _ if self.worker_has_work() => {}
            Worker::Running => {
                self.worker = Worker::Stopping;
                todo.push(Action::StopWorker);
            }
            // Nobody needs the next one any more.
            Worker::Died => self.worker = Worker::Absent,
            Worker::Absent | Worker::Stopping => {}
        }
    }

    fn worker_has_work(&self) -> bool {
        let waits = |stage: &Stage| self.worker == Worker::Died && *stage == Stage::Prepared;
        self.devices.iter().any(|(id, stage)| stage.is_at_work(*id) || waits(stage))
    }
}

impl Stage {
    /// Whether a worker that runs has something of this device.
    fn is_at_work(&self, id: DeviceId) -> bool {
        match self {
            Self::Attaching | Self::Retrying | Self::Serving | Self::Following => true,
            Self::GivenUp | Self::Detaching(_) | Self::Vacant => true,
            Self::Preparing => !id.class.is_waited_for(),
            Self::Prepared | Self::Detached(_) | Self::Dead(_) | Self::Foreign => false,
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
