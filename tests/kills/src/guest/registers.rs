//! What a driver does by registers: the steps of §3.1.1, resets, and looks at what it has written.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::Guest;
use crate::layout::{QUEUE_SIZE, QUEUES, SLOTS};
use crate::queue::RingFeatures;
use crate::stage::{Event, PATIENCE};
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

impl Guest<'_> {
    fn access(&mut self, offset: u32, len: usize, value: Option<u64>) -> Result<u64> {
        self.tally.accesses += 1;
        self.stage.tell(Event::Access);
        self.bus.access(Access { offset: offset.into(), len, value }, self.stage)
    }

    pub(super) fn read(&mut self, register: u32) -> Result<u32> {
        Ok(u32::try_from(self.access(register, 4, None)?)?)
    }

    pub(super) fn write(&mut self, register: u32, value: u32) -> Result<()> {
        self.access(register, 4, Some(value.into())).map(drop)
    }

    fn write_address(&mut self, low: u32, address: u64) -> Result<()> {
        self.access(low, 4, Some(address & 0xffff_ffff))?;
        self.access(low + 4, 4, Some(address >> 32)).map(drop)
    }

    /// From a device that was reset to one in use, step by step as §3.1.1 has it.
    pub(super) fn bring_up(&mut self) -> Result<()> {
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
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.tally.resets += 1;
        self.stage.set_in_service(false);
        self.stage.tell(Event::Reset);
        self.write(VIRTIO_MMIO_STATUS, 0)?;
        (0..QUEUES).try_for_each(|index| self.abandon(index))?;
        ensure!(self.read(VIRTIO_MMIO_STATUS)? == 0, "The device was reset, and its status is not zero");
        self.bring_up()
    }

    /// Takes one queue out of use (§2.6.1) and into use again, while the other goes on.
    pub(super) fn reset_queue(&mut self) -> Result<()> {
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
    pub(super) fn switch_cache(&mut self) -> Result<()> {
        // Each write is durable by itself without a cache, which takes long.
        self.writeback = if self.random.u8(0..4) == 0 { 0 } else { 1 };
        self.access(VIRTIO_MMIO_CONFIG + WRITEBACK, 1, Some(self.writeback)).map(drop)
    }

    /// What the driver has written is what it reads.
    pub(super) fn check_registers(&mut self) -> Result<()> {
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
