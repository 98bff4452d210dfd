//! A device's interrupt line, as Xen has it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ioreq::Hypervisor;
use virtio_backend::Bell;
use virtio_mmio::InterruptLine;

/// A shared peripheral interrupt of the guest, of which Xen's interrupt controller knows edges: libxl gives the guest
/// edge-triggered lines, so a high level injects and there is no level to take back.
pub(super) enum XenLine {
    /// A call for each interrupt.
    Called {
        /// Who takes it.
        hypervisor: Arc<dyn Hypervisor>,
        /// As Xen counts: from 32 on.
        irq: u32,
    },
    /// The kernel injects when the bell rings, for two thirds of what a call costs.
    Tied {
        /// Kept as long as the bell is to do so.
        _tie: Box<dyn Send + Sync>,
        /// Rung for each interrupt.
        bell: Bell,
    },
}

impl XenLine {
    /// The line `irq` of a guest, by the cheaper way if the kernel has it.
    pub(super) fn new(hypervisor: &Arc<dyn Hypervisor>, irq: u32) -> Self {
        let tied = Bell::new().ok().and_then(|bell| {
            let _tie = hypervisor.tie_irq(irq, bell.as_fd()).ok()?;
            Some(Self::Tied { _tie, bell })
        });
        tied.unwrap_or_else(|| Self::Called { hypervisor: Arc::clone(hypervisor), irq })
    }
}

impl InterruptLine for XenLine {
    fn raise(&self) -> io::Result<()> {
        match self {
            Self::Called { hypervisor, irq } => hypervisor.set_irq_level(*irq, true).map_err(io::Error::other),
            Self::Tied { bell, .. } => {
                bell.ring();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::xen::FakeXen;

    use super::*;

    #[test]
    fn where_the_kernel_has_no_other_way_each_interrupt_is_a_call() {
        let xen = FakeXen::new(1);
        let hypervisor: Arc<dyn Hypervisor> = xen.hypervisor();
        let line = XenLine::new(&hypervisor, 40);

        line.raise().unwrap();
        line.raise().unwrap();

        assert_eq!(xen.irq(40), 2);
    }

    #[test]
    fn a_line_that_is_tied_writes_to_its_eventfd() {
        let bell = Bell::new().unwrap();
        let kernel = bell.as_fd().try_clone_to_owned().unwrap();
        let line = XenLine::Tied { _tie: Box::new(()), bell };

        line.raise().unwrap();
        line.raise().unwrap();

        let mut written = [0; 8];
        rustix::io::read(&kernel, &mut written).unwrap();
        assert_eq!(u64::from_ne_bytes(written), 2);
    }
}
