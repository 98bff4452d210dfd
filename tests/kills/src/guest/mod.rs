//! The guest: a driver that keeps requests in flight, believes nothing, and resets its device now and then.

mod registers;
mod requests;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Result;
use guest_memory::SharedMemory;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use crate::bus::Bus;
use crate::layout::{QUEUES, SLOTS};
use crate::oracle::{Asked, Oracle};
use crate::queue::{Queue, RingFeatures};
use crate::stage::Stage;

/// A queue, and what is asked in each of its slots.
struct Line {
    queue: Queue,
    asked: Vec<Option<Asked>>,
}

/// What a guest has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were answered.
    pub answers: u64,
    /// Requests that were taken back by a reset.
    pub abandoned: u64,
    /// Resets of the device.
    pub resets: u64,
    /// Resets of single queues.
    pub queue_resets: u64,
    /// Register accesses.
    pub accesses: u64,
    /// Interrupts.
    pub interrupts: u64,
}

/// A guest with one disk.
pub(crate) struct Guest<'a> {
    bus: &'a Bus,
    stage: &'a Stage,
    interrupt: OwnedFd,
    lines: Vec<Line>,
    oracle: Oracle,
    random: fastrand::Rng,
    /// Requests that each queue has at a time, at most.
    depth: u16,
    /// What the driver has agreed on.
    features: RingFeatures,
    /// What configuration space has to say of the cache.
    writeback: u64,
    tally: Tally,
}

impl<'a> Guest<'a> {
    /// One whose disk has so many sectors, all zeroes.
    pub(crate) fn new(
        bus: &'a Bus,
        stage: &'a Stage,
        memory: &Arc<SharedMemory>,
        interrupt: OwnedFd,
        sectors: usize,
        random: fastrand::Rng,
    ) -> Self {
        let line =
            |index| Line { queue: Queue::new(Arc::clone(memory), index), asked: (0..SLOTS).map(|_| None).collect() };
        let (lines, oracle) = ((0..QUEUES).map(line).collect(), Oracle::new(sectors));
        Self {
            bus,
            stage,
            interrupt,
            lines,
            oracle,
            random,
            depth: 1,
            features: RingFeatures::default(),
            writeback: 0,
            tally: Tally::default(),
        }
    }

    /// Uses the disk until there are no more kills to come, and then reads all of it. Returns what was seen, and what the disk
    /// has to hold.
    ///
    /// # Errors
    /// The device did something that no device does.
    pub(crate) fn live(mut self) -> Result<(Tally, Oracle)> {
        match self.use_disk() {
            Ok(()) => Ok((self.tally, self.oracle)),
            Err(error) => {
                let states: Vec<_> = self.lines.iter().map(|line| format!("\n  {}", line.queue.state())).collect();
                Err(error.context(format!("The guest after {:?}; its queues:{}", self.tally, states.concat())))
            }
        }
    }

    fn use_disk(&mut self) -> Result<()> {
        self.bring_up()?;
        while !self.stage.is_ending() {
            match self.random.u32(0..100) {
                0..3 => self.start_again()?,
                3..6 => self.reset_queue()?,
                6..9 => self.switch_cache()?,
                9..20 => self.check_registers()?,
                _ => {}
            }
            self.submit()?;
            self.wait_for_answers()?;
        }
        while self.lines.iter().any(|line| line.queue.in_flight() > 0) {
            self.wait_for_answers()?;
        }
        self.read_all()?;
        self.check_registers()?;
        self.write(VIRTIO_MMIO_STATUS, 0)
    }
}
