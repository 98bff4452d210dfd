//! What guest and broker know of each other: what has happened, so that kills come at chosen moments; how long a kill was felt;
//! and whether it is over.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take before it is called a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to the guest, and can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is about to make a register access.
    Access,
    /// It has made requests available.
    Submission,
    /// It was interrupted.
    Interrupt,
    /// A request was answered.
    Answer,
    /// It is about to reset the device.
    Reset,
}

/// How often each event has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events([u64; 5]);

impl Events {
    /// Of this one.
    pub(crate) fn of(&self, event: Event) -> u64 {
        self.0.get(event as usize).copied().unwrap_or(0)
    }
}

/// A kill whose end for the guest is the first request that the next worker answers.
struct Kill {
    when: Instant,
    /// How long the kernel took to end the worker.
    ended_after: Duration,
    /// The indexes of the used rings when the worker had ended.
    left: Vec<u16>,
}

#[derive(Default)]
struct Shared {
    events: Events,
    /// The guest uses the device, and has requests in flight whenever it can.
    is_in_service: bool,
    kill: Option<Kill>,
    felt: Vec<Felt>,
}

/// How long a kill was felt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Felt {
    /// Until the worker had ended, and with it all its I/O.
    pub(crate) ended: Duration,
    /// Until the next one had answered.
    pub(crate) answered: Duration,
}

/// Where guest and broker meet.
#[derive(Default)]
pub(crate) struct Stage {
    shared: Mutex<Shared>,
    happened: Condvar,
    has_failed: AtomicBool,
    is_ending: AtomicBool,
}

impl Stage {
    /// Something happens.
    pub(crate) fn tell(&self, event: Event) {
        if let Some(count) = self.shared().events.0.get_mut(event as usize) {
            *count += 1;
        }
        self.happened.notify_all();
    }

    /// What has happened so far.
    pub(crate) fn events(&self) -> Events {
        self.shared().events
    }

    /// Waits until enough has happened, or for so long. Whether it has.
    pub(crate) fn wait(&self, patience: Duration, is_enough: impl Fn(&Events) -> bool) -> bool {
        let goes_on = |shared: &mut Shared| !is_enough(&shared.events) && !self.has_failed();
        let waited = self.happened.wait_timeout_while(self.shared(), patience, goes_on);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The guest has set the device up, or is about to reset it.
    pub(crate) fn set_in_service(&self, is_in_service: bool) {
        let mut shared = self.shared();
        shared.is_in_service = is_in_service;
        shared.kill = None;
    }

    /// A worker was killed then, and has ended now with the used rings at these indexes.
    pub(crate) fn killed(&self, when: Instant, left: Vec<u16>) {
        let ended_after = when.elapsed();
        let mut shared = self.shared();
        shared.kill = shared.is_in_service.then_some(Kill { when, ended_after, left });
    }

    /// The times between a kill and the next do not count.
    pub(crate) fn forget_kill(&self) {
        self.shared().kill = None;
    }

    /// The guest finds the request answered that the used ring of this queue has at this index.
    pub(crate) fn answered(&self, queue: usize, index: u16) {
        let mut shared = self.shared();
        let left = |kill: &Kill| kill.left.get(queue).copied();
        // Modulo 2^16: the half behind what was left is later.
        let is_later = |left: u16| index.wrapping_sub(left) < 1 << 15;
        if shared.kill.as_ref().and_then(left).is_some_and(is_later) {
            let felt = shared.kill.take();
            let felt = felt.map(|kill| Felt { ended: kill.ended_after, answered: kill.when.elapsed() });
            shared.felt.extend(felt);
        }
        drop(shared);
        self.tell(Event::Answer);
    }

    /// How long kills were felt.
    pub(crate) fn felt(&self) -> Vec<Felt> {
        self.shared().felt.clone()
    }

    /// Nobody is to wait for anything any more.
    pub(crate) fn fail(&self) {
        self.has_failed.store(true, SeqCst);
        self.happened.notify_all();
    }

    /// See [`fail`](Self::fail).
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(SeqCst)
    }

    /// # Errors
    /// The other side has failed, and has said why.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.has_failed() {
            bail!("The other side has failed");
        }
        Ok(())
    }

    /// There are no more kills to come: the guest is to finish.
    pub(crate) fn end(&self) {
        self.is_ending.store(true, SeqCst);
    }

    /// See [`end`](Self::end).
    pub(crate) fn is_ending(&self) -> bool {
        self.is_ending.load(SeqCst)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
