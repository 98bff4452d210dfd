//! What register accesses and lanes share, and the life of the device from reset to reset.
//!
//! A run begins with DRIVER_OK and ends when the last lane has ended: by a fault, or because a reset
//! told it to. Only then is a reset done, and the write that asked for it answered; whoever writes
//! meanwhile is answered as ever, and nobody waits on a lock.
//!
//! The register lock is held for moments, by the thread that serves accesses and by lanes that fault
//! or end. Nothing foreign runs under it: what devices say, interrupts, answers, lanes' ends and logs
//! come before or after.

use std::error::Error;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use io_bus::{Completer, Deferral, Written, defer};
use virtio_backend::{Fault, Identity, Lane, Memo, MemoError, Signals};

use crate::features::{Features, RING_RESET};
use crate::interrupt::{Cause, Interrupt};
use crate::queue::{Queue, Queues};
use crate::saved::Saved;
use crate::status::Status;
use crate::sync::{AtomicU32, Mutex, MutexGuard};

/// One device's state, as long as the device lives.
pub(crate) struct State {
    name: String,
    registers: Mutex<Registers>,
    pub(crate) interrupt: Interrupt,
    config_generation: AtomicU32,
    device_id: u32,
    memo: Memo<Saved>,
}

/// What the driver has written, and what runs because of it.
pub(crate) struct Registers {
    pub(crate) status: Status,
    pub(crate) features: Features,
    pub(crate) queues: Queues,
    /// Configuration space changed when there was no driver to tell yet.
    pub(crate) config_change_untold: bool,
    life: Life,
    /// Writes that are answered when the run has ended.
    waiting: Vec<Completer>,
    /// The device is taken away: no driver may start it again.
    removed: bool,
}

enum Life {
    /// No lane runs.
    Idle,
    /// Lanes run, or have been told to stop after a fault and are not in here any more.
    Running { run: Weak<Run>, lanes: Vec<Lane> },
    /// Lanes have been told to stop, and the reset is done when they have.
    Resetting,
}

/// A run of the device: shared by its lanes and by all that waits for one of them. The last to let
/// go ends it.
pub(crate) struct Run {
    state: Arc<State>,
}

impl State {
    pub(crate) fn new(
        name: String,
        identity: &Identity,
        features: Features,
        interrupt: Interrupt,
        memo: Memo<Saved>,
    ) -> Arc<Self> {
        let registers = Registers {
            status: Status::default(),
            features,
            queues: Queues::new(identity),
            config_change_untold: false,
            life: Life::Idle,
            waiting: Vec::new(),
            removed: false,
        };
        let (registers, config_generation) = (Mutex::new(registers), AtomicU32::new(0));
        Arc::new(Self { name, registers, interrupt, config_generation, device_id: identity.device_id, memo })
    }

    /// Notes the registers: before what they say has an effect, and before the access is answered that changed them. Those
    /// of a device that is taken away stay noted as its driver left them, for a process that may follow.
    pub(crate) fn save(&self, registers: &Registers) {
        if registers.removed {
            return;
        }
        let (queues, queue_sel) = registers.queues.saved();
        let saved = Saved {
            device_id: self.device_id,
            status: registers.status.bits(),
            features: registers.features.saved(),
            queue_sel,
            queues,
            config_generation: self.config_generation(),
            config_change_untold: registers.config_change_untold,
        };
        if let Err(error) = self.memo.store(&saved) {
            tracing::error!(name: "mmio.unsaved", device = self.name, %error,
                "If this process dies the device cannot be brought back");
        }
    }

    /// What a former process had noted.
    ///
    /// # Errors
    /// It makes no sense.
    pub(crate) fn saved(&self) -> Result<Option<Saved>, MemoError> {
        self.memo.load()
    }

    /// Configuration space may not be what a driver of a former process has read, of which the last generation may not
    /// have been noted.
    pub(crate) fn follow_generation(&self, former: u32) {
        self.config_generation.store(former.wrapping_add(2), Ordering::Release);
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    /// No code that can panic leaves the registers half changed.
    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers, for a write that sets something up: not while a reset is under way.
    pub(crate) fn writable(&self) -> Option<MutexGuard<'_, Registers>> {
        let registers = self.registers();
        let is_open = !registers.removed && !matches!(registers.life, Life::Resetting);
        is_open.then_some(registers)
    }

    /// As [`writable`](Self::writable), for what has an effect later only: noted when it is let go of.
    pub(crate) fn noting(&self) -> Option<Noting<'_>> {
        Some(Noting { state: self, registers: self.writable()? })
    }

    /// The driver wrote 0 to Status.
    pub(crate) fn reset(&self) -> Written {
        self.reset_and_unlock(self.registers())
    }

    /// The device is taken away: a last reset.
    pub(crate) fn remove(&self) -> Written {
        let mut registers = self.registers();
        registers.removed = true;
        self.reset_and_unlock(registers)
    }

    fn reset_and_unlock(&self, mut registers: MutexGuard<'_, Registers>) -> Written {
        let status = registers.status.bits();
        let (before, written) = if matches!(registers.life, Life::Idle) {
            registers.reset();
            self.save(&registers);
            self.interrupt.clear();
            (Life::Idle, Written::Now)
        } else {
            let before = mem::replace(&mut registers.life, Life::Resetting);
            (before, Written::Later(registers.wait_for_end()))
        };
        drop(registers);
        // Dropping the lanes stops them. They may be the last to hold the run.
        drop(before);
        tracing::debug!(name: "mmio.reset", device = self.name, from = status, at_once = matches!(written, Written::Now));
        written
    }

    /// Starts a run; its lanes follow by [`Registers::add_lane`].
    pub(crate) fn begin_run(self: &Arc<Self>, registers: &mut Registers) -> Arc<Run> {
        let run = Arc::new(Run { state: Arc::clone(self) });
        registers.life = Life::Running { run: Arc::downgrade(&run), lanes: Vec::new() };
        run
    }

    /// Nothing of the device touches guest memory any more.
    fn end_run(&self) {
        let mut registers = self.registers();
        let before = mem::replace(&mut registers.life, Life::Idle);
        if matches!(before, Life::Resetting) {
            registers.reset();
            self.interrupt.clear();
        } else {
            registers.queues.iter_mut().for_each(Queue::finish_stopping);
        }
        self.save(&registers);
        let answered = mem::take(&mut registers.waiting);
        drop(registers);
        drop((before, answered));
    }
}

/// The registers, which are noted before they are unlocked.
pub(crate) struct Noting<'a> {
    state: &'a State,
    registers: MutexGuard<'a, Registers>,
}

impl Deref for Noting<'_> {
    type Target = Registers;

    fn deref(&self) -> &Registers {
        &self.registers
    }
}

impl DerefMut for Noting<'_> {
    fn deref_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        self.state.save(&self.registers);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.state.end_run();
    }
}

impl Registers {
    /// Everything that a driver can change, back to where it starts. Destructured, so that no new
    /// field is forgotten.
    fn reset(&mut self) {
        let Self { status, features, queues, config_change_untold, life: _, waiting: _, removed: _ } = self;
        *status = Status::default();
        features.reset();
        queues.reset();
        *config_change_untold = false;
    }

    /// What a former process had noted, but for the queues. Gives the status.
    pub(crate) fn restore(&mut self, saved: &Saved) -> Status {
        self.status = Status::noted(saved.status);
        self.features.restore(saved.features);
        self.config_change_untold = saved.config_change_untold;
        self.status
    }

    pub(crate) fn add_lane(&mut self, lane: Lane) {
        if let Life::Running { lanes, .. } = &mut self.life {
            lanes.push(lane);
        }
    }

    /// The lanes that run; none after a fault.
    pub(crate) fn lanes(&self) -> &[Lane] {
        match &self.life {
            Life::Running { lanes, .. } => lanes,
            Life::Idle | Life::Resetting => &[],
        }
    }

    /// The features, as long as they are negotiated.
    pub(crate) fn features_to_negotiate(&mut self) -> Option<&mut Features> {
        (!self.status.has(Status::FEATURES_OK)).then_some(&mut self.features)
    }

    /// The selected queue with its index, if the driver may set it up now: it is not in service, and
    /// either the device is not in use yet (virtio 1.2 §3.1.1) or queues can be reset (§2.6.1).
    pub(crate) fn queue_to_set_up(&mut self) -> Option<(usize, &mut Queue)> {
        let is_in_use = self.status.has(Status::DRIVER_OK);
        let is_time = !is_in_use || self.can_reset_queues();
        self.queues.selected_mut().filter(|(_, queue)| is_time && queue.is_off())
    }

    pub(crate) fn can_reset_queues(&self) -> bool {
        self.status.has(Status::FEATURES_OK) && self.features.has(RING_RESET)
    }

    /// Takes a queue that is ready out of service: at once, or when its lane has let go of it, as the
    /// deferral tells. `place` is its lane and its index there.
    pub(crate) fn stop_queue(&mut self, index: usize, place: (usize, usize), by_reset: bool) -> Written {
        let Some(queue) = self.queues.get_mut(index) else { return Written::Now };
        queue.start_stopping(by_reset);
        let Life::Running { run, lanes } = &self.life else {
            queue.finish_stopping();
            return Written::Now;
        };
        let (lane, queue_in_lane) = place;
        // In this order: a run that is not handed on must not be held either, for under the lock it
        // must not end.
        let Some((lane, run)) = lanes.get(lane).and_then(|lane| Some((lane, run.upgrade()?))) else {
            // The lane has been told to stop already, with all others.
            return Written::Later(self.wait_for_end());
        };
        let (answer, deferral) = defer();
        let stopping = StoppingQueue { run, index, _answer: answer };
        lane.reset_queue(queue_in_lane, Box::new(move |_position| drop(stopping)));
        Written::Later(deferral)
    }

    fn wait_for_end(&mut self) -> Deferral {
        let (completer, deferral) = defer();
        self.waiting.push(completer);
        deferral
    }
}

/// A queue on its way out of service. Dropped by its lane, whether that got to it or ended before.
struct StoppingQueue {
    run: Arc<Run>,
    index: usize,
    /// Completes the driver's write, after the register has changed.
    _answer: Completer,
}

impl Drop for StoppingQueue {
    fn drop(&mut self) {
        let state = &self.run.state;
        let mut registers = state.registers();
        if let Some(queue) = registers.queues.get_mut(self.index) {
            queue.finish_stopping();
            state.save(&registers);
        }
    }
}

impl Signals for State {
    fn used(&self, queues: &[usize]) {
        tracing::trace!(name: "mmio.used", device = self.name, ?queues);
        self.interrupt.assert(Cause::UsedBuffer);
    }

    fn config_changed(&self) {
        let mut registers = self.registers();
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        // Before DRIVER_OK the device must be silent, but a driver may have read what is now old.
        let is_told = registers.status.has(Status::DRIVER_OK);
        registers.config_change_untold |= !is_told;
        self.save(&registers);
        let rises = is_told && self.interrupt.set(Cause::Config);
        drop(registers);
        if rises {
            self.interrupt.inject();
        }
    }

    /// Shows DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2), once until the reset, and stops all lanes.
    fn needs_reset(&self, fault: &Fault) {
        let error: &dyn Error = fault;
        tracing::warn!(name: "mmio.fault", device = self.name, error, "The device stops until its driver resets it");
        let mut registers = self.registers();
        if registers.status.has(Status::DEVICE_NEEDS_RESET) {
            return;
        }
        registers.status.insert(Status::DEVICE_NEEDS_RESET);
        self.save(&registers);
        let rises = registers.status.has(Status::DRIVER_OK) && self.interrupt.set(Cause::Config);
        let stopped = match &mut registers.life {
            Life::Running { lanes, .. } => mem::take(lanes),
            Life::Idle | Life::Resetting => Vec::new(),
        };
        drop(registers);
        drop(stopped);
        if rises {
            self.interrupt.inject();
        }
    }
}
