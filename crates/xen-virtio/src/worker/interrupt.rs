//! A device's interrupt line, as Xen has it.

use std::io;
use std::sync::Arc;

use ioreq::Hypervisor;
use virtio_mmio::InterruptLine;

/// A shared peripheral interrupt of the guest, of which Xen's interrupt controller knows edges.
pub(super) struct XenLine {
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    /// As Xen counts: from 32 on.
    pub(super) irq: u32,
}

impl InterruptLine for XenLine {
    /// libxl gives the guest edge-triggered lines: a high level injects, and there is no level to take back.
    fn raise(&self) -> io::Result<()> {
        self.hypervisor.set_irq_level(self.irq, true).map_err(io::Error::other)
    }
}
