//! Interrupts raised by the kernel when an eventfd is written (Linux 6.12 with XEN_PRIVCMD_EVENTFD).
#![expect(unsafe_code, reason = "an ioctl whose argument holds an address")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use rustix::io::{Errno, dup};

use crate::abi::dm_op::{self, DmOp, SetIrqLevel};
use crate::abi::linux_privcmd::{IRQFD, IRQFD_FLAG_DEASSIGN, Irqfd};
use crate::privcmd::address_of;
use crate::{DeviceModel, DomId, Error, Privcmd, sys};

/// An eventfd tied to an interrupt line of an Arm guest: each write raises it. Untied when dropped.
#[derive(Debug)]
pub struct IrqFd {
    privcmd: Arc<Privcmd>,
    domain: DomId,
    irq: u32,
    event: OwnedFd,
}

impl IrqFd {
    /// Ties `event` to the line.
    ///
    /// # Errors
    /// [`Kind::KernelLacksIt`](crate::Kind::KernelLacksIt): then raise it by
    /// [`DeviceModel::set_irq_level`]. `EBUSY`: the eventfd is tied already.
    pub fn new(model: &DeviceModel, irq: u32, event: impl AsFd) -> Result<Self, Error> {
        let failed = |errno| Error::new(format!("Tying an eventfd to interrupt {irq}"), errno);
        let event = dup(event).map_err(failed)?;
        let tied = Self { privcmd: Arc::clone(model.privcmd()), domain: model.domain(), irq, event };
        tied.call(0).map(|()| tied).map_err(|errno| match errno {
            // A kernel built without it, as opposed to one that is older than it.
            Errno::OPNOTSUPP | Errno::NOSYS => failed(Errno::NOTTY),
            errno => failed(errno),
        })
    }

    fn call(&self, flags: u32) -> Result<(), Errno> {
        let member = SetIrqLevel { irq: self.irq, level: 1, pad: [0; 3] };
        let mut op = DmOp::new(dm_op::SET_IRQ_LEVEL, &member);
        let mut call = Irqfd {
            dm_op: address_of(ptr::from_mut(&mut op)),
            size: u32::try_from(size_of_val(&op)).unwrap_or(0),
            fd: self.event.as_raw_fd().cast_unsigned(),
            flags,
            dom: self.domain.get(),
            pad: [0; 2],
        };
        // SAFETY: IRQFD takes this struct and copies the operation, which lives until it returns.
        unsafe { sys::ioctl(self.privcmd.as_fd(), IRQFD, &mut call) }.map(drop)
    }
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        // It fails only for what is not tied.
        let _ = self.call(IRQFD_FLAG_DEASSIGN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn a_kernel_without_it_is_told_apart() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let model = DeviceModel::new(Arc::new(Privcmd::from(null())), DomId::new(3).unwrap());
        let refused = IrqFd::new(&model, 33, null()).unwrap_err();
        assert_eq!(refused.kind(), Kind::KernelLacksIt);
    }
}
