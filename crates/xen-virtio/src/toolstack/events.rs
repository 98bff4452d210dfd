//! What the [`Lifecycle`](super::lifecycle::Lifecycle) hears, and what it wants done.

use crate::model::DeviceId;

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
    /// There is no worker process any more, or none could be started, and none can go on where it was; and what is known
    /// of it.
    WorkerEnded(String),
    /// The worker process is gone; what is known of it. If it was not told to end, another can go on where it was.
    WorkerDied(String),
    /// The worker process is gone, as were those before it: no other is to try what it did; what is known of it.
    WorkersDie(String),
    /// Another worker goes on where one died, and waits to be told what it serves.
    WorkerFollows,
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
    /// Have the worker answer for it, and do nothing.
    GiveUp(DeviceId),
    /// Start a worker that goes on where one died, and report [`Event::WorkerFollows`].
    FollowWorker,
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
    /// The worker died while the guest used it, and no other can go on; how.
    WorkerDied(String),
    /// It worked, and is served no more; why.
    GivenUp(String),
}
