//! What a device is: the traits that a new one implements.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::{Fault, Operation, Record, Ring, Signals};

/// What a driver and a transport must know of a device. Fixed for the device's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The virtio device ID (virtio 1.2 §5).
    pub device_id: u32,
    /// The device-specific feature bits it offers (§2.2: 0 to 23 and 50 to 127, of which the first
    /// 64 exist here). The bits of rings and transport are the transport's to offer.
    pub features: u64,
    /// The largest size of each queue: a power of two, at most 32768 (§2.7).
    pub queue_sizes: Vec<u16>,
    /// The queues that each lane works, in order. Together they cover every queue once.
    pub lanes: Vec<Range<usize>>,
    /// Bytes of device-specific configuration space; reads beyond give zero.
    pub config_len: usize,
    /// The most bytes a descriptor chain may describe, both directions together. A chain that
    /// claims more is refused before any of it is mapped.
    pub max_chain_bytes: u64,
}

/// A device model. It survives resets; its workers do not.
///
/// Shared between the transport and the lanes, it guards what it changes itself. The config methods
/// run on the thread that serves the guest's register accesses: they never block and do no I/O.
pub trait Backend: Send + Sync + 'static {
    /// What the device is.
    fn identity(&self) -> &Identity;

    /// Fills `data` from configuration space at `offset`; the range lies within
    /// [`Identity::config_len`].
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// The driver said DRIVER_OK: starts the worker of `lane`, on that lane's thread.
    ///
    /// # Errors
    /// The host does not give what the worker needs; the device then needs a reset.
    fn start(&self, lane: usize, features: u64) -> io::Result<Box<dyn Worker>>;

    /// Takes a write to configuration space; the range lies within [`Identity::config_len`].
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// Whether the device can work with these of the features it offered (§2.2.2).
    fn accepts(&self, _features: u64) -> bool {
        true
    }

    /// The driver has chosen these features, which the device accepts. What a driver can set by configuration space
    /// starts anew here. Told before a worker is started with them, and not again before a reset.
    fn negotiated(&self, _features: u64) {}

    /// Hands over, once and before all else, where the device keeps what the process that follows must know if this one
    /// dies: what a driver or the operator has set, beyond registers and queues. What it finds there a former process left.
    fn keep(&self, _record: &Record) {}

    /// Hands over, once, the way to tell the driver of a changed configuration.
    fn attach(&self, _signals: Arc<dyn Signals>) {}

    /// Does what the operator asks. Called on any thread; returns soon.
    ///
    /// # Errors
    /// Why it does not, for the operator to read.
    fn operate(&self, _operation: Operation) -> Result<(), String> {
        Err("This kind of device has nothing of that sort".to_owned())
    }

    /// What the device counts, beside what every device counts: names in `snake_case`, since start.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Reads `data.len()` bytes at `offset` of a configuration space that is `space`; for [`Backend::read_config`].
pub fn copy_config(space: &[u8], offset: usize, data: &mut [u8]) {
    if let Some(bytes) = space.get(offset..offset.saturating_add(data.len())) {
        data.copy_from_slice(bytes);
    }
}

/// Why a worker is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The driver may have made buffers available in this queue, counted within the lane.
    Queue(usize),
    /// This one of [`Worker::sources`] is ready.
    Source(usize),
}

/// Works the queues of one lane, always on that lane's thread.
///
/// Dropping a worker waits until the kernel is done with every buffer of every request it holds:
/// after a fault there is no drain.
pub trait Worker: Send {
    /// Does what there is to do. Interrupts are raised by the lane when this returns, one a pass.
    ///
    /// # Errors
    /// A fault stops the lane; the device needs a reset. Host I/O that fails is not a fault but the
    /// result of its request.
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault>;

    /// Descriptors to wait for beside the kicks: a tap, a completion eventfd, a timer. They are
    /// watched edge-triggered, so a wake means: read until there is no more. Descriptors that come and go, or that
    /// are to be written, are watched by a [`Watcher`](crate::Watcher), which is one source.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Whether the driver may be told of what this wake brings some moments later, together with what comes in those
    /// moments; and how many requests must come then for it to be worth the delay. `None`: it is told at once. Not asked
    /// where telling [is cheap](crate::Signals::is_cheap).
    fn patience(&self, _wake: Wake) -> Option<u64> {
        Some(4)
    }

    /// How long the lane may look on at its queues when there is nothing to do, instead of sleeping until the driver kicks;
    /// asked once. It takes a processor for it, and only while the driver comes again as soon.
    fn polls_for(&self) -> Duration {
        Duration::ZERO
    }

    /// Finishes all that is in flight; every request taken has been pushed when this returns.
    ///
    /// # Errors
    /// As for [`Worker::work`].
    fn drain(&mut self, _rings: &mut [Ring]) -> Result<(), Fault> {
        Ok(())
    }
}
