//! Connections for workers, which have no right to make any.
//!
//! What is connected to is named by the configuration of a device that the worker was given: of the worker's comes nothing
//! but a number, whose meaning is the kind's. For each device one connection is made at a time, on a thread that may wait,
//! and a worker has a bounded number of questions unanswered. So whatever it asks, it keeps none but its own devices waiting.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Broker;
use super::worker::{Spawner, Worker};
use crate::model::{DeviceId, Model};
use crate::protocol::{Order, Unreached};

/// How long a worker waits at most. Connecting takes as long as the host likes, such as to look a name up: then the answer
/// is that it takes too long, and the device's next question waits until it is over.
const PATIENCE: Duration = Duration::from_secs(10);

/// By device, the one connection that may be under way for it.
#[derive(Default)]
pub struct Turns(BTreeMap<DeviceId, Arc<Semaphore>>);

impl Turns {
    fn of(&mut self, id: DeviceId) -> Arc<Semaphore> {
        Arc::clone(self.0.entry(id).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }

    /// Forgets devices that are not served any more.
    pub(super) fn retain(&mut self, is_served: impl Fn(DeviceId) -> bool) {
        self.0.retain(|id, _| is_served(*id));
    }
}

impl<S: Spawner> Broker<S> {
    /// Connects for a guest's worker to what one of its devices names by this number, beside the loop.
    pub(super) fn reach(&mut self, domid: u16, id: DeviceId, ticket: u64, number: u32) {
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        let Some(worker) = &guest.worker else { return };
        let Some(question) = worker.question() else {
            return worker.kill("it was killed because it asked for more connections than it may at a time");
        };
        let answer = Answerer { worker: Arc::downgrade(worker), question, id, ticket };
        match guest.devices.get(&id) {
            Some(served) => {
                tokio::spawn(answer.give(served.device.model.clone(), number, guest.turns.of(id)));
            }
            // Let go of meanwhile, or never given.
            None => answer.say(Err(Errno::NODEV.into())),
        }
    }
}

/// Who answers one question of a worker's.
struct Answerer {
    worker: Weak<Worker>,
    /// Of those that it may have unanswered.
    question: OwnedSemaphorePermit,
    id: DeviceId,
    ticket: u64,
}

impl Answerer {
    async fn give(self, model: Model, number: u32, turn: Arc<Semaphore>) {
        let outcome = timeout(PATIENCE, connect(model, number, turn)).await;
        self.say(outcome.unwrap_or_else(|_elapsed| Err(Errno::TIMEDOUT.into())));
    }

    /// A worker that is gone needs no answer, and its connection is closed.
    fn say(self, outcome: io::Result<OwnedFd>) {
        let Self { worker, question, id, ticket } = self;
        let Some(worker) = worker.upgrade() else { return };
        // Before the worker can know: so it never has more than it believes.
        drop(question);
        let (outcome, connection) = match outcome {
            Ok(connection) => (Ok(()), Some(connection)),
            Err(error) => (Err(Unreached::from(&error)), None),
        };
        let connection: Vec<_> = connection.iter().map(AsFd::as_fd).collect();
        worker.tell(&Order::Reached { id, ticket, outcome }, &connection);
    }
}

async fn connect(model: Model, number: u32, turn: Arc<Semaphore>) -> io::Result<OwnedFd> {
    let turn = turn.acquire_owned().await.map_err(io::Error::other)?;
    let connected = tokio::task::spawn_blocking(move || {
        // Kept until it is over, though nobody may wait any more.
        let _turn = turn;
        model.reach(number)
    });
    connected.await?
}
