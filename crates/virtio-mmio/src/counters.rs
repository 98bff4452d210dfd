//! What the register file counts: each trap of the guest once, and what came of it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

virtio_backend::counters! {
    /// Counts of one register file since it was made, over all resets.
    pub struct Counters;
    /// [`Counters`] at one moment.
    pub struct CountersSnapshot;

    /// Reads of registers, InterruptStatus aside.
    register_reads,
    /// Writes of registers, QueueNotify and InterruptACK aside.
    register_writes,
    /// Reads of configuration space.
    config_reads,
    /// Writes of configuration space.
    config_writes,
    /// Writes of QueueNotify.
    notifies,
    /// Reads of InterruptStatus.
    interrupt_status_reads,
    /// Writes of InterruptACK.
    interrupt_acks,
    /// Accesses without effect, because of what they were or when they came; all are in one of the
    /// counts above as well.
    ignored,
    /// Interrupts injected.
    interrupts,
    /// Interrupts that the host refused to inject.
    interrupts_lost,
    /// Resets that the driver, or the device's removal, has asked for.
    resets,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
