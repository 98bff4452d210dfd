//! What a running device says to its driver, through whichever transport.

use crate::Fault;

/// The way from a lane, or a device, to the driver. Called from any thread; never blocks.
pub trait Signals: Send + Sync {
    /// Used buffers wait in these queues, counted over the whole device, and the driver asked to
    /// hear of it. One call a pass.
    fn used(&self, queues: &[usize]);

    /// Whether being told costs the driver's side no more than being woken. A lane then tells of the first of many requests
    /// while it works on the others, so that driver and device work at the same time. Otherwise being told costs traps,
    /// and a lane tells as seldom as can be.
    fn is_cheap(&self) -> bool {
        false
    }

    /// Configuration space has changed.
    fn config_changed(&self);

    /// A lane has stopped; the device does nothing more until it is reset.
    fn needs_reset(&self, fault: &Fault);
}
