//! The life of a guest's devices: what happened goes in, what to do comes out.
//!
//! Pure and without time, so that tests can walk every path. The broker feeds it what it sees in xenstore and hears
//! from the worker, and carries out the actions in order. Four promises live here: nothing is ready before its window
//! is claimed; where nobody waits for that, the window is claimed before anything else is done; nothing is closed while any of the guest's memory is held for it; every end is reached whether the
//! toolstack asks for it, the guest just disappears, or the worker dies.

use std::collections::BTreeMap;

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
    /// Waits for the guest's former worker to end.
    Prepared,
    /// The worker is to serve it and has not said that it does.
    Attaching,
    /// The guest may use it.
    Serving,
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
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What xenstore shows of a device now.
    Seen(DeviceId, Sight),
    /// All that the device needs is at hand.
    Prepared(DeviceId),
    /// It cannot be served; from the preparation or the worker.
    Refused(DeviceId, String),
    /// The worker serves it.
    Attached(DeviceId),
    /// The worker has let go of it.
    Detached(DeviceId),
    /// There is no worker process any more, or none could be started; and what is known of it.
    WorkerEnded(String),
    /// The domain is dead.
    DomainGone,
    /// Letting go takes longer than a toolstack waits.
    Overdue,
}

/// What a device's directory in xenstore says, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// There is no state.
    Absent,
    /// `Initialising` (1): nobody has served it yet.
    New,
    /// `InitWait` to `Connected` (2 to 4): someone serves it.
    Live,
    /// `Closing` (5), or offline.
    Closing,
    /// `Closed` (6).
    Closed,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have the worker claim its window, and let accesses wait; start one if there is none.
    Reserve(DeviceId),
    /// Read its description, open what it needs, and report [`Event::Prepared`] or [`Event::Refused`].
    Prepare(DeviceId),
    /// Have the worker show that there is no device in its window.
    Vacate(DeviceId),
    /// Have the worker serve it; start one if there is none.
    Attach(DeviceId),
    /// Have the worker let go of it.
    Detach(DeviceId),
    /// Have the worker end.
    StopWorker,
    /// End the worker.
    KillWorker,
    /// Tell the toolstack.
    Publish(DeviceId, News),
    /// Tell the operator.
    Report(DeviceId, Trouble),
}

/// What the toolstack is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The guest may start.
    Ready,
    /// The guest cannot have it, and why.
    Failed(String),
    /// Nothing of the guest is held for it any more.
    Closed,
}

/// What the operator is told, beside what the toolstack is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A running guest's device that a former broker's worker may still serve.
    Foreign,
    /// The worker died while the guest used it; how.
    WorkerDied(String),
}

impl Lifecycle {
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
            (Sight::New, Some(Stage::Serving)) => todo.push(Action::Publish(id, News::Ready)),
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
        if !id.class.is_waited_for() && self.worker != Worker::Stopping {
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
        if self.worker == Worker::Stopping {
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
            Some(stage @ (Stage::Preparing | Stage::Attaching)) => {
                if !id.class.is_waited_for() && worker == Worker::Running {
                    todo.push(Action::Vacate(id));
                    *stage = Stage::Vacant;
                } else {
                    *stage = Stage::Dead(Some(reason.clone()));
                }
                todo.push(Action::Publish(id, News::Failed(reason)));
            }
            // What was never there is let go of.
            Some(Stage::Detaching(_)) => self.detached(id, todo),
            _ => {}
        }
    }

    fn attached(&mut self, id: DeviceId, todo: &mut Vec<Action>) {
        if let Some(stage @ Stage::Attaching) = self.devices.get_mut(&id) {
            *stage = Stage::Serving;
            todo.push(Action::Publish(id, News::Ready));
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

    fn worker_ended(&mut self, how: &str, todo: &mut Vec<Action>) {
        let was_told_to = self.worker == Worker::Stopping;
        self.worker = Worker::Absent;
        for id in self.devices.keys().copied().collect::<Vec<_>>() {
            match self.devices.get_mut(&id) {
                Some(Stage::Preparing) if was_told_to => self.reserve(id, todo),
                Some(Stage::Preparing) if id.class.is_waited_for() => {}
                Some(Stage::Preparing | Stage::Attaching) => self.refused(id, how.to_owned(), todo),
                Some(stage @ Stage::Vacant) => *stage = Stage::Dead(None),
                Some(stage @ Stage::Serving) => {
                    *stage = Stage::Dead(None);
                    todo.push(Action::Report(id, Trouble::WorkerDied(how.to_owned())));
                }
                Some(Stage::Detaching(then) | Stage::Detached(then)) => {
                    let then = *then;
                    self.finish(id, then, todo);
                }
                Some(stage @ Stage::Prepared) => {
                    *stage = Stage::Attaching;
                    self.worker = Worker::Running;
                    todo.push(Action::Attach(id));
                }
                Some(Stage::Dead(_) | Stage::Foreign) | None => {}
            }
        }
    }

    fn stop_idle_worker(&mut self, todo: &mut Vec<Action>) {
        if self.worker == Worker::Running && !self.worker_has_work() {
            self.worker = Worker::Stopping;
            todo.push(Action::StopWorker);
        }
    }

    fn worker_has_work(&self) -> bool {
        self.devices.iter().any(|(id, stage)| stage.is_at_work(*id))
    }
}

impl Stage {
    /// Whether a worker that runs has something of this device.
    fn is_at_work(&self, id: DeviceId) -> bool {
        match self {
            Self::Attaching | Self::Serving | Self::Detaching(_) | Self::Vacant => true,
            Self::Preparing => !id.class.is_waited_for(),
            Self::Prepared | Self::Detached(_) | Self::Dead(_) | Self::Foreign => false,
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
