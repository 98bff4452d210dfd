//! What a driver does by its queues: it asks, is interrupted, and looks at what it got.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY,
};

use super::Guest;
use crate::layout::DATA_BYTES;
use crate::oracle::{Effect, SECTOR, Span, ZEROES, contents};
use crate::queue::Body;
use crate::stage::{Event, PATIENCE};

/// Sectors of a request that moves data, at most.
const MOST: usize = DATA_BYTES / SECTOR;

impl Guest<'_> {
    /// Fills both queues as far as chance will have it, never leaving all empty, and kicks.
    pub(super) fn submit(&mut self) -> Result<()> {
        for index in 0..self.lines.len() {
            let in_flight = |guest: &Self| guest.lines.get(index).map_or(0, |line| line.queue.in_flight());
            while in_flight(self) < self.depth.into() && (in_flight(self) == 0 || self.random.u8(0..8) > 0) {
                let effect = self.draw();
                self.ask(index, effect)?;
            }
            self.kick(index)?;
        }
        self.stage.tell(Event::Submission);
        Ok(())
    }

    fn kick(&mut self, index: usize) -> Result<()> {
        if self.lines.get_mut(index).is_some_and(|line| line.queue.wants_kick()) {
            self.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(index)?)?;
        }
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
    pub(super) fn wait_for_answers(&mut self) -> Result<()> {
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
        if causes & VIRTIO_MMIO_INT_CONFIG != 0 {
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
    pub(super) fn read_all(&mut self) -> Result<()> {
        for start in (0..self.oracle.capacity()).step_by(MOST) {
            let sectors = MOST.min(self.oracle.capacity() - start);
            let index = start / MOST % self.lines.len();
            self.ask(index, Effect::Read(Span { start, sectors }))?;
            self.kick(index)?;
            while self.lines.iter().any(|line| line.queue.in_flight() > 0) {
                self.wait_for_answers()?;
            }
        }
        Ok(())
    }
}
