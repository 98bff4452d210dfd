//! Kicks: a write to QueueNotify (virtio 1.2 §4.2.3.3) becomes a write to the queue's eventfd.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An eventfd for each queue. They live as long as the device; lanes come and go.
pub(crate) struct Doorbell {
    kicks: Vec<Arc<EventFd>>,
}

impl Doorbell {
    /// # Errors
    /// The process has no more descriptors.
    pub(crate) fn new(queues: usize) -> io::Result<Self> {
        let kicks = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { kicks })
    }

    /// Wakes the lane of `queue`.
    pub(crate) fn ring(&self, queue: u32) {
        let kick = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue));
        if let Some(kick) = kick {
            tracing::trace!(name: "mmio.kick", queue);
            // It fails only at 2^64-2 unread kicks; the lane has one to see then.
            let _ = kick.write(1);
        }
    }

    /// What wakes the lane of `queue`.
    pub(crate) fn kick(&self, queue: usize) -> Option<Arc<EventFd>> {
        self.kicks.get(queue).cloned()
    }
}
