//! The registers of virtqueues (virtio 1.2 §4.2.2): what a driver sets up, before a lane checks it.
//!
//! Nothing here is believed: a size or an address that cannot be is found by the lane that takes the
//! queue into service, so that there is one place to look for such checks.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use virtio_backend::{Identity, RingPosition, RingSetup};

use crate::features::{halves, whole};

/// One queue's registers.
#[derive(Debug)]
pub(crate) struct Queue {
    max_size: u16,
    size: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    phase: Phase,
}

/// What is noted of a queue.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedQueue {
    size: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    phase: Phase,
}

/// Whether a queue is in service.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// QueueReady reads 0.
    Off,
    /// QueueReady reads 1.
    Ready,
    /// On the way from there to off: its lane finishes what is in flight.
    Stopping {
        /// The driver asked through QueueReset, which reads 1 meanwhile.
        by_reset: bool,
    },
}

/// One of the three areas of a split queue (§2.7).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Area {
    Desc,
    Driver,
    Device,
}

/// One half of a 64-bit address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Low,
    High,
}

impl Queue {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, desc_table: 0, avail_ring: 0, used_ring: 0, phase: Phase::Off }
    }

    /// The registers, to be noted. A driver that has written 0 to QueueReady waits, and will write it again.
    fn saved(&self) -> SavedQueue {
        let Self { max_size: _, size, desc_table, avail_ring, used_ring, phase } = *self;
        let phase = if phase == (Phase::Stopping { by_reset: false }) { Phase::Ready } else { phase };
        SavedQueue { size, desc_table, avail_ring, used_ring, phase }
    }

    /// What a former process had noted. A queue that was on its way out of service is in service again, and has to be
    /// stopped again: true.
    fn restore(&mut self, saved: &SavedQueue) -> bool {
        let SavedQueue { size, desc_table, avail_ring, used_ring, phase } = *saved;
        let stops = matches!(phase, Phase::Stopping { .. });
        let phase = if stops { Phase::Ready } else { phase };
        *self = Self { max_size: self.max_size, size, desc_table, avail_ring, used_ring, phase };
        stops
    }

    /// Puts all its registers back to where they start.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    pub(crate) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver may change size and addresses now.
    pub(crate) fn is_off(&self) -> bool {
        self.phase == Phase::Off
    }

    /// Whether kicks are heard.
    pub(crate) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// A queue on its way out is in service until its lane has let go of it.
    pub(crate) fn reads_ready(&self) -> bool {
        self.phase != Phase::Off
    }

    pub(crate) fn reads_reset(&self) -> bool {
        self.phase == Phase::Stopping { by_reset: true }
    }

    /// Takes what the driver wrote to QueueNum; 0, which no queue can have, stands for what does not
    /// fit.
    pub(crate) fn set_size(&mut self, size: u32) {
        self.size = u16::try_from(size).unwrap_or(0);
    }

    pub(crate) fn set_address(&mut self, area: Area, half: Half, value: u32) {
        let address = match area {
            Area::Desc => &mut self.desc_table,
            Area::Driver => &mut self.avail_ring,
            Area::Device => &mut self.used_ring,
        };
        let [low, high] = halves(*address);
        *address = match half {
            Half::Low => whole([value, high]),
            Half::High => whole([low, value]),
        };
    }

    pub(crate) fn set_ready(&mut self) {
        self.phase = Phase::Ready;
    }

    pub(crate) fn start_stopping(&mut self, by_reset: bool) {
        self.phase = Phase::Stopping { by_reset };
    }

    /// The lane has let go of the queue, if it was asked to.
    pub(crate) fn finish_stopping(&mut self) {
        match self.phase {
            Phase::Stopping { by_reset: true } => self.reset(),
            Phase::Stopping { by_reset: false } => self.phase = Phase::Off,
            Phase::Off | Phase::Ready => {}
        }
    }

    /// What the lane is to work, starting afresh.
    pub(crate) fn setup(&self, event_idx: bool, max_chain_bytes: u64) -> RingSetup {
        RingSetup {
            size: self.size,
            max_size: self.max_size,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            event_idx,
            position: RingPosition::default(),
            max_chain_bytes,
        }
    }
}

/// All queues of a device, and the one that the driver selected.
#[derive(Debug)]
pub(crate) struct Queues {
    queues: Vec<Queue>,
    /// Any 32 bits.
    selected: u32,
}

impl Queues {
    pub(crate) fn new(identity: &Identity) -> Self {
        Self { queues: identity.queue_sizes.iter().map(|&max_size| Queue::new(max_size)).collect(), selected: 0 }
    }

    /// The registers, to be noted: those of each queue, and QueueSel.
    pub(crate) fn saved(&self) -> (Vec<SavedQueue>, u32) {
        (self.queues.iter().map(Queue::saved).collect(), self.selected)
    }

    /// What a former process had noted of as many queues. Gives those that have to be stopped again.
    pub(crate) fn restore(&mut self, saved: &[SavedQueue], selected: u32) -> Vec<usize> {
        self.selected = selected;
        let queues = self.queues.iter_mut().zip(saved).enumerate();
        queues.filter_map(|(index, (queue, saved))| queue.restore(saved).then_some(index)).collect()
    }

    pub(crate) fn reset(&mut self) {
        let Self { queues, selected } = self;
        queues.iter_mut().for_each(Queue::reset);
        *selected = 0;
    }

    pub(crate) fn select(&mut self, index: u32) {
        self.selected = index;
    }

    /// The selected queue and its index, if it exists.
    pub(crate) fn selected(&self) -> Option<&Queue> {
        self.get(self.selected)
    }

    pub(crate) fn selected_mut(&mut self) -> Option<(usize, &mut Queue)> {
        let index = usize::try_from(self.selected).ok()?;
        Some((index, self.queues.get_mut(index)?))
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Queue> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues.get_mut(index)
    }

    /// Those that one lane works.
    pub(crate) fn of_lane(&self, range: Range<usize>) -> &[Queue] {
        self.queues.get(range).unwrap_or_default()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.queues.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_put_together_from_halves_in_any_order() {
        let mut queue = Queue::new(8);
        queue.set_address(Area::Desc, Half::High, 0x1234);
        queue.set_address(Area::Desc, Half::Low, 0x8000_0000);
        queue.set_address(Area::Driver, Half::Low, u32::MAX);
        queue.set_address(Area::Device, Half::High, u32::MAX);
        let setup = queue.setup(false, 0);
        assert_eq!(setup.desc_table, 0x1234_8000_0000);
        assert_eq!((setup.avail_ring, setup.used_ring), (0xffff_ffff, 0xffff_ffff_0000_0000));
    }

    #[test]
    fn c05_a_size_beyond_16_bits_is_not_mistaken_for_a_smaller_one() {
        let mut queue = Queue::new(8);
        for size in [0x1_0000, 0x1_0008, 1 << 31, u32::MAX] {
            queue.set_size(size);
            assert_eq!(queue.setup(false, 0).size, 0, "{size:#x}");
        }
    }

    #[test]
    fn a_queue_stops_only_if_asked_and_then_starts_from_scratch() {
        let mut queue = Queue::new(8);
        queue.set_size(4);
        queue.set_ready();
        queue.finish_stopping();
        assert!(queue.is_ready());
        queue.start_stopping(true);
        assert!(queue.reads_reset() && queue.reads_ready() && !queue.is_off());
        queue.finish_stopping();
        assert!(queue.is_off() && !queue.reads_reset());
        assert_eq!(queue.setup(false, 0).size, 8);
    }
}
