//! The guest: a driver that keeps requests in flight, believes nothing, and resets its device now and then.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use guest_memory::SharedMemory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::bus::Bus;
use crate::layout::{DATA_BYTES, QUEUE_SIZE, QUEUES, SLOTS};
use crate::oracle::{Asked, Effect, Oracle, SECTOR, Span, ZEROES, contents};
use crate::queue::{Body, Queue, RingFeatures};
use crate::stage::{Event, PATIENCE, Stage};
use crate::wire::Access;

/// Status while the device is in use.
const IN_USE: u32 =
    VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// What every driver here takes.
const ALWAYS: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_RING_RESET
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_CONFIG_WCE
    | 1 << VIRTIO_BLK_F_MQ
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// The register QueueReset (§4.2.2).
const QUEUE_RESET: u32 = 0x0c0;

/// Where `writeback` is in configuration space (§5.2.4).
const WRITEBACK: u32 = 32;

/// Sectors of a request that moves data, at most.
const MOST: usize = DATA_BYTES / SECTOR;

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

/// Registers.
impl Guest<'_> {
    fn access(&mut self, offset: u32, len: usize, value: Option<u64>) -> Result<u64> {
        self.tally.accesses += 1;
        self.stage.tell(Event::Access);
        self.bus.access(Access { offset: offset.into(), len, value }, self.stage)
    }

    fn read(&mut self, register: u32) -> Result<u32> {
        Ok(u32::try_from(self.access(register, 4, None)?)?)
    }

    fn write(&mut self, register: u32, value: u32) -> Result<()> {
        self.access(register, 4, Some(value.into())).map(drop)
    }

    fn write_address(&mut self, low: u32, address: u64) -> Result<()> {
        self.access(low, 4, Some(address & 0xffff_ffff))?;
        self.access(low + 4, 4, Some(address >> 32)).map(drop)
    }

    /// From a device that was reset to one in use, step by step as §3.1.1 has it.
    fn bring_up(&mut self) -> Result<()> {
        let mut status = 0;
        for bit in [VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER] {
            status |= bit;
            self.write(VIRTIO_MMIO_STATUS, status)?;
        }
        self.features = RingFeatures { event_idx: self.random.bool(), indirect: self.random.bool() };
        self.negotiate()?;
        status |= VIRTIO_CONFIG_S_FEATURES_OK;
        self.write(VIRTIO_MMIO_STATUS, status)?;
        ensure!(self.read(VIRTIO_MMIO_STATUS)? == status, "The device does not agree to features that it has offered");
        for index in 0..QUEUES {
            self.set_up(index)?;
        }
        self.write(VIRTIO_MMIO_STATUS, IN_USE)?;
        self.writeback = self.access(VIRTIO_MMIO_CONFIG + WRITEBACK, 1, None)?;
        self.depth = self.random.u16(1..=SLOTS);
        self.stage.set_in_service(true);
        Ok(())
    }

    fn negotiate(&mut self) -> Result<()> {
        let RingFeatures { event_idx, indirect } = self.features;
        let with = |has: bool, feature: u32| u64::from(has) << feature;
        let wanted = ALWAYS | with(event_idx, VIRTIO_RING_F_EVENT_IDX) | with(indirect, VIRTIO_RING_F_INDIRECT_DESC);
        for word in 0..2 {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word)?;
            let offered = u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES)?);
            let wanted = wanted >> (32 * word) & 0xffff_ffff;
            ensure!(offered & wanted == wanted, "The device offers {offered:#x} as word {word} of its features");
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word)?;
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(wanted)?)?;
        }
        Ok(())
    }

    fn set_up(&mut self, index: u16) -> Result<()> {
        let line = self.lines.get_mut(usize::from(index)).context("A queue for each index")?;
        line.queue.renew(self.features);
        let [desc_table, avail_ring, used_ring] = line.queue.areas();
        self.write(VIRTIO_MMIO_QUEUE_SEL, index.into())?;
        self.write(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into())?;
        self.write_address(VIRTIO_MMIO_QUEUE_DESC_LOW, desc_table)?;
        self.write_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail_ring)?;
        self.write_address(VIRTIO_MMIO_QUEUE_USED_LOW, used_ring)?;
        self.write(VIRTIO_MMIO_QUEUE_READY, 1)
    }

    /// Resets the device, whatever it is at, and takes it into use again.
    fn start_again(&mut self) -> Result<()> {
        self.tally.resets += 1;
        self.stage.set_in_service(false);
        self.stage.tell(Event::Reset);
        self.write(VIRTIO_MMIO_STATUS, 0)?;
        (0..QUEUES).try_for_each(|index| self.abandon(index))?;
        ensure!(self.read(VIRTIO_MMIO_STATUS)? == 0, "The device was reset, and its status is not zero");
        self.bring_up()
    }

    /// Takes one queue out of use (§2.6.1) and into use again, while the other goes on.
    fn reset_queue(&mut self) -> Result<()> {
        self.tally.queue_resets += 1;
        self.stage.set_in_service(false);
        self.stage.tell(Event::Reset);
        let index = self.random.u16(0..QUEUES);
        self.write(VIRTIO_MMIO_QUEUE_SEL, index.into())?;
        self.write(QUEUE_RESET, 1)?;
        let started = Instant::now();
        while self.read(QUEUE_RESET)? != 0 {
            ensure!(started.elapsed() < PATIENCE, "The reset of queue {index} takes longer than {PATIENCE:?}");
        }
        ensure!(self.read(VIRTIO_MMIO_QUEUE_READY)? == 0, "Queue {index} was reset, and is in use");
        self.abandon(index)?;
        self.set_up(index)?;
        self.stage.set_in_service(true);
        Ok(())
    }

    /// Takes back what a queue has in flight.
    fn abandon(&mut self, index: u16) -> Result<()> {
        let line = self.lines.get_mut(usize::from(index)).context("A queue for each index")?;
        for asked in line.asked.iter_mut().filter_map(Option::take) {
            self.oracle.abandon(&asked);
            self.tally.abandoned += 1;
        }
        Ok(())
    }

    /// The driver's choice of the cache's mode, which has to last.
    fn switch_cache(&mut self) -> Result<()> {
        // Each write is durable by itself without a cache, which takes long.
        self.writeback = if self.random.u8(0..4) == 0 { 0 } else { 1 };
        self.access(VIRTIO_MMIO_CONFIG + WRITEBACK, 1, Some(self.writeback)).map(drop)
    }

    /// What the driver has written is what it reads.
    fn check_registers(&mut self) -> Result<()> {
        let status = self.read(VIRTIO_MMIO_STATUS)?;
        ensure!(status == IN_USE, "Status is {status:#x} and not {IN_USE:#x}");
        let index = self.random.u16(0..QUEUES);
        self.write(VIRTIO_MMIO_QUEUE_SEL, index.into())?;
        ensure!(self.read(VIRTIO_MMIO_QUEUE_READY)? == 1, "Queue {index} is not in use any more");
        let sectors = self.access(VIRTIO_MMIO_CONFIG, 8, None)?;
        ensure!(sectors == self.oracle.capacity() as u64, "The disk has {sectors} sectors");
        let writeback = self.access(VIRTIO_MMIO_CONFIG + WRITEBACK, 1, None)?;
        ensure!(writeback == self.writeback, "The driver's choice of {} for writeback is {writeback}", self.writeback);
        Ok(())
    }
}

/// Requests.
impl Guest<'_> {
    /// Fills both queues as far as chance will have it, never leaving all empty, and kicks.
    fn submit(&mut self) -> Result<()> {
        for index in 0..self.lines.len() {
            let in_flight = |guest: &Self| guest.lines.get(index).map_or(0, |line| line.queue.in_flight());
            while in_flight(self) < self.depth.into() && (in_flight(self) == 0 || self.random.u8(0..8) > 0) {
                let effect = self.draw();
                self.ask(index, effect)?;
            }
            if self.lines.get_mut(index).is_some_and(|line| line.queue.wants_kick()) {
                self.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(index)?)?;
            }
        }
        self.stage.tell(Event::Submission);
        Ok(())
    }

    fn draw(&mut self) -> Effect {
        let capacity = self.oracle.capacity();
        let sectors = self.random.usize(1..=MOST);
        let span = Span { start: self.random.usize(0..=capacity - sectors), sectors };
        match self.random.u8(0..64) {
            0 => Effect::Flush,
            1 => Effect::Discard(span),
            2..5 => Effect::Write(span, ZEROES),
            5..30 => Effect::Read(span),
            _ => Effect::Write(span, self.oracle.new_writer()),
        }
    }

    fn ask(&mut self, index: usize, effect: Effect) -> Result<()> {
        let others = self.lines.iter_mut().flat_map(|line| line.asked.iter_mut().flatten());
        let asked = self.oracle.begin(effect, others);
        let line = self.lines.get_mut(index).context("A queue for each index")?;
        let slot = line.queue.free_slot().context("A free slot")?;
        let data;
        let (kind, span, body) = match effect {
            Effect::Flush => (VIRTIO_BLK_T_FLUSH, Span { start: 0, sectors: 0 }, Body::Empty),
            Effect::Read(span) => (VIRTIO_BLK_T_IN, span, Body::Filled(span.len())),
            Effect::Discard(span) => {
                (VIRTIO_BLK_T_DISCARD, span, Body::Segment { sectors: u32::try_from(span.sectors)?, flags: 0 })
            }
            Effect::Write(span, ZEROES) => {
                let flags = if self.random.bool() { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
                (VIRTIO_BLK_T_WRITE_ZEROES, span, Body::Segment { sectors: u32::try_from(span.sectors)?, flags })
            }
            Effect::Write(span, writer) => {
                data = contents(span, writer);
                (VIRTIO_BLK_T_OUT, span, Body::Given(&data))
            }
        };
        line.queue.submit(slot, kind, span.start as u64, &body)?;
        if let Some(place) = line.asked.get_mut(usize::from(slot)) {
            *place = Some(asked);
        }
        Ok(())
    }

    /// Sleeps until an interrupt comes, unless there are answers already, and takes what is there.
    fn wait_for_answers(&mut self) -> Result<()> {
        if self.lines.iter().any(|line| line.queue.ask_for_calls()) {
            return self.take_answers();
        }
        self.wait_for_interrupt()?;
        self.tally.interrupts += 1;
        self.stage.tell(Event::Interrupt);
        let causes = self.read(VIRTIO_MMIO_INTERRUPT_STATUS)?;
        if causes != 0 {
            self.write(VIRTIO_MMIO_INTERRUPT_ACK, causes)?;
        }
        if causes & 2 != 0 {
            self.check_registers()?;
        }
        self.take_answers()
    }

    /// Looks at the registers if it takes long, which says more than that nothing comes.
    fn wait_for_interrupt(&mut self) -> Result<()> {
        let started = Instant::now();
        let long = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
        while poll(&mut [PollFd::new(&self.interrupt, PollFlags::IN)], Some(&long))? == 0 {
            self.stage.go_on()?;
            self.check_registers()?;
            ensure!(started.elapsed() < PATIENCE, "No interrupt for {PATIENCE:?}");
        }
        rustix::io::read(&self.interrupt, &mut [0; 8])?;
        Ok(())
    }

    fn take_answers(&mut self) -> Result<()> {
        for (index, line) in self.lines.iter_mut().enumerate() {
            loop {
                let position = line.queue.used();
                let Some(slot) = line.queue.take()? else { break };
                let place = line.asked.get_mut(usize::from(slot));
                let asked = place.and_then(Option::take).context("Each slot in flight is of a request")?;
                if let Effect::Read(span) = asked.effect {
                    asked.check(&line.queue.data_of(slot, span.len()))?;
                }
                line.queue.put_away(slot);
                self.oracle.end(&asked);
                self.tally.answers += 1;
                self.stage.answered(index, position);
            }
        }
        Ok(())
    }

    /// Reads the whole disk, by both queues.
    fn read_all(&mut self) -> Result<()> {
        for start in (0..self.oracle.capacity()).step_by(MOST) {
            let sectors = MOST.min(self.oracle.capacity() - start);
            let index = start / MOST % self.lines.len();
            self.ask(index, Effect::Read(Span { start, sectors }))?;
            if self.lines.get_mut(index).is_some_and(|line| line.queue.wants_kick()) {
                self.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(index)?)?;
            }
            while self.lines.iter().any(|line| line.queue.in_flight() > 0) {
                self.wait_for_answers()?;
            }
        }
        Ok(())
    }
}
