//! The writes that start and stop lanes: Status (virtio 1.2 §3.1.1, §2.4), QueueReady (§4.2.2) and
//! QueueReset (§2.6.1). `None` stands for a write without effect.

use std::io;
use std::mem;
use std::sync::Arc;

use io_bus::Written;
use virtio_backend::features::EVENT_IDX;
use virtio_backend::{Fault, Lane, LaneSetup, Ledger, QueueSetup, Signals, guarded};

use crate::Transport;
use crate::counters::count;
use crate::interrupt::Cause;
use crate::queue::Queue;
use crate::state::{Registers, Run};
use crate::status::Status;

/// Status.
impl Transport {
    pub(crate) fn write_status(&self, value: u32) -> Option<Written> {
        if value == 0 {
            count(&self.counters.resets);
            return Some(self.state.reset());
        }
        let written = Status::written(value);
        let judged = self.judge_features(written);
        let mut registers = self.state.writable()?;
        let before = registers.status;
        // What was judged must be what counts from now on.
        let is_acceptable = judged.is_some_and(|features| features == registers.features.accepted());
        let after = before.after(written, is_acceptable);
        registers.status = after;
        let starts = after.has(Status::DRIVER_OK) && !before.has(Status::DRIVER_OK);
        if starts {
            // Before it is noted that the device runs: whoever follows goes on from there.
            self.ledgers().for_each(|ledger| ledger.clear());
        }
        self.state.save(&registers);
        let started = starts.then(|| self.start_lanes(&mut registers));
        drop(registers);
        tracing::debug!(name: "mmio.status", device = self.state.name(), from = before.bits(), to = after.bits());
        if let Some(started) = started {
            self.finish_start(started);
        }
        (after != before).then_some(Written::Now)
    }

    /// The accepted features, if the driver asks whether they will do, and they will. The device has
    /// the last word, and says it without a lock held.
    fn judge_features(&self, written: Status) -> Option<u64> {
        let registers = self.state.registers();
        let is_asked = written.has(Status::FEATURES_OK) && !registers.status.has(Status::FEATURES_OK);
        let (acceptable, missing) = (registers.features.acceptable(), registers.features.missing());
        drop(registers);
        if is_asked && missing != 0 {
            tracing::warn!(
                name: "mmio.no_grants", device = self.state.name(),
                "The guest's driver does not take VIRTIO_F_ACCESS_PLATFORM, without which it cannot use grants, and this \
                 device uses nothing else (grant_usage=1)"
            );
        }
        let features = acceptable.filter(|_| is_asked)?;
        let judged = guarded(|| {
            let accepts = self.backend.accepts(features);
            if accepts {
                self.backend.negotiated(features);
            }
            Ok(accepts)
        });
        match judged {
            Ok(accepts) => accepts.then_some(features),
            Err(fault) => {
                self.state.needs_reset(&fault);
                None
            }
        }
    }

    /// Starts the lanes with those of their queues that are ready. The kernel makes threads here; all
    /// else happens on them.
    fn start_lanes(&self, registers: &mut Registers) -> Started {
        let run = self.state.begin_run(registers);
        let mut failure = None;
        for index in 0..self.backend.identity().lanes.len() {
            match self.spawn_lane(index, registers, Arc::clone(&run)) {
                Ok(lane) => registers.add_lane(lane),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let config_interrupt =
            mem::take(&mut registers.config_change_untold) && self.state.interrupt.set(Cause::Config);
        Started { _run: run, failure, config_interrupt }
    }

    fn spawn_lane(&self, index: usize, registers: &Registers, run: Arc<Run>) -> io::Result<Lane> {
        let queues = self.backend.identity().lanes.get(index).cloned().unwrap_or_default();
        let queues = queues.clone().zip(registers.queues.of_lane(queues));
        Lane::spawn(LaneSetup {
            name: format!("{}.{index}", self.state.name()),
            backend: Arc::clone(&self.backend),
            index,
            features: registers.features.accepted(),
            cache: Arc::clone(&self.cache),
            queues: queues.map(|(index, queue)| self.queue_setup(index, queue, registers)).collect(),
            signals: Arc::clone(&self.state) as Arc<dyn Signals>,
            counters: Arc::clone(&self.lane_counters),
            ended: Box::new(move |_positions| drop(run)),
        })
    }

    fn finish_start(&self, started: Started) {
        if started.config_interrupt {
            self.state.interrupt.inject();
        }
        if let Some(source) = started.failure {
            self.state.needs_reset(&Fault::Host { doing: "starting a thread for its queues", source });
        }
    }

    /// What a lane needs of a queue, if that is ready.
    fn queue_setup(&self, index: usize, queue: &Queue, registers: &Registers) -> Option<QueueSetup> {
        let ring = queue.setup(registers.features.has(EVENT_IDX), self.backend.identity().max_chain_bytes);
        queue.is_ready().then_some(QueueSetup {
            ring,
            ledger: self.ledgers().nth(index),
            kick: self.doorbell.kick(index)?,
        })
    }

    /// Those of all queues, for which there is room.
    fn ledgers(&self) -> impl Iterator<Item = Ledger> {
        self.record.ledgers(&self.backend.identity().queue_sizes).into_iter().flatten()
    }
}

/// What remains of a start once the registers are unlocked.
struct Started {
    /// The run must not end under the lock, as it would if no thread is to be had.
    _run: Arc<Run>,
    failure: Option<io::Error>,
    /// The driver hears now of what changed before it could be told.
    config_interrupt: bool,
}

/// What a former process has left.
impl Transport {
    /// Goes on with it.
    pub(crate) fn follow(&self) {
        let saved = match self.state.saved() {
            Ok(Some(saved)) => saved,
            Ok(None) => return self.state.save(&self.state.registers()),
            Err(error) => return self.give_up(&error.to_string()),
        };
        if !saved.are_of(self.backend.identity()) {
            return self.give_up("It is that of another device");
        }
        if !Status::noted(saved.status).is_reachable() {
            return self.give_up("Its status is one that no driver can have come to");
        }
        let mut registers = self.state.registers();
        let status = registers.restore(&saved);
        self.state.follow_generation(saved.config_generation);
        let is_believable = !status.has(Status::FEATURES_OK) || self.accepts(registers.features.acceptable());
        if !is_believable {
            drop(registers);
            return self.give_up("Its driver uses features that this version does not offer");
        }
        let stopping = registers.queues.restore(&saved.queues, saved.queue_sel);
        if status.has(Status::DRIVER_OK) {
            self.state.interrupt.set_all();
        }
        let started = status.is_live().then(|| self.start_lanes(&mut registers));
        for index in stopping {
            if let Some(place) = self.place_of(index) {
                let _polled_for = registers.stop_queue(index, place, true);
            }
        }
        self.state.save(&registers);
        drop(registers);
        if status.has(Status::DRIVER_OK) {
            tracing::info!(name: "mmio.follows", device = self.state.name(), status = status.bits(),
                "Going on where a former process was");
            self.state.interrupt.inject();
        }
        if let Some(started) = started {
            self.finish_start(started);
        }
    }

    fn accepts(&self, features: Option<u64>) -> bool {
        let accepted = features.map(|features| guarded(|| Ok(self.backend.accepts(features))));
        matches!(accepted, Some(Ok(true)))
    }

    /// A driver may be using the device, of which nothing certain is known: it must not see a new one.
    fn give_up(&self, why: &str) {
        tracing::error!(name: "mmio.lost", device = self.state.name(), why,
            "What a former process has left of the device cannot be used: it stops until its driver resets it");
        let mut registers = self.state.registers();
        registers.status = Status::RUNNING | Status::DEVICE_NEEDS_RESET;
        self.state.save(&registers);
        drop(registers);
        self.state.interrupt.set_all();
        self.state.interrupt.inject();
    }
}

/// QueueReady and QueueReset.
impl Transport {
    pub(crate) fn write_queue_ready(&self, value: u32) -> Option<Written> {
        match value {
            0 => self.disable_queue(),
            1 => self.enable_queue().map(|()| Written::Now),
            _ => None,
        }
    }

    fn enable_queue(&self) -> Option<()> {
        let mut registers = self.state.writable()?;
        let (index, queue) = registers.queue_to_set_up()?;
        queue.set_ready();
        self.ledgers().nth(index)?.clear();
        self.state.save(&registers);
        let (lane, queue_in_lane) = self.place_of(index)?;
        let setup = self.queue_setup(index, registers.queues.selected()?, &registers)?;
        // Before DRIVER_OK there are no lanes yet; they start with this queue.
        if let Some(lane) = registers.lanes().get(lane) {
            lane.enable_queue(queue_in_lane, setup);
        }
        Some(())
    }

    /// A driver reads QueueReady back to be sure that the queue is out of use (§4.2.2.2): it gets to
    /// read when it is.
    fn disable_queue(&self) -> Option<Written> {
        let mut registers = self.state.writable()?;
        let (index, queue) = registers.queues.selected_mut()?;
        if queue.is_off() {
            return Some(Written::Now);
        }
        // One that is being stopped goes on with that.
        queue.is_ready().then_some(())?;
        let written = registers.stop_queue(index, self.place_of(index)?, false);
        self.state.save(&registers);
        Some(written)
    }

    /// Unlike a write to QueueReady, this is answered at once: the driver polls (§4.2.2.1).
    pub(crate) fn write_queue_reset(&self, value: u32) -> Option<()> {
        let mut registers = self.state.writable()?;
        if value != 1 || !registers.can_reset_queues() {
            return None;
        }
        let (index, queue) = registers.queues.selected_mut()?;
        if queue.is_off() {
            queue.reset();
            self.state.save(&registers);
            return Some(());
        }
        queue.is_ready().then_some(())?;
        let _polled_for = registers.stop_queue(index, self.place_of(index)?, true);
        self.state.save(&registers);
        Some(())
    }

    /// A queue's lane, and its index there.
    fn place_of(&self, queue: usize) -> Option<(usize, usize)> {
        let lanes = self.backend.identity().lanes.iter().enumerate();
        lanes.filter(|(_, queues)| queues.contains(&queue)).map(|(lane, queues)| (lane, queue - queues.start)).next()
    }
}
