//! The way of the guest's one vCPU to its device: an access waits until it is answered, by whichever worker does it.
//!
//! It is made again if a worker ends with it, as an ioreq slot that is found INPROCESS is; it is not if the worker had
//! answered, as with one found RESP_READY.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};

use crate::stage::{PATIENCE, Stage};
use crate::wire::{Access, exchange};

/// Where workers are found.
#[derive(Default)]
pub(crate) struct Bus {
    current: Mutex<Current>,
    changed: Condvar,
}

/// The worker of the moment.
#[derive(Clone, Default)]
struct Current {
    /// Counts workers; 0: there was none yet.
    number: u64,
    socket: Option<Arc<UnixStream>>,
}

impl Bus {
    /// There is another worker.
    pub(crate) fn attach(&self, socket: UnixStream) {
        let mut current = self.current();
        *current = Current { number: current.number + 1, socket: Some(Arc::new(socket)) };
        self.changed.notify_all();
    }

    /// Makes an access. Returns what was read.
    ///
    /// # Errors
    /// No worker answers for [`PATIENCE`], or the test has failed elsewhere.
    pub(crate) fn access(&self, access: Access, stage: &Stage) -> Result<u64> {
        let mut last = 0;
        loop {
            let Current { number, socket } = self.after(last, access, stage)?;
            match socket.map(|socket| exchange(&socket, access)) {
                Some(Ok(value)) => return Ok(value),
                _ => last = number,
            }
        }
    }

    /// A worker that came after this one.
    fn after(&self, last: u64, access: Access, stage: &Stage) -> Result<Current> {
        let is_old = |current: &mut Current| current.number <= last && !stage.has_failed();
        let waited = self.changed.wait_timeout_while(self.current(), PATIENCE, is_old);
        let (current, _) = waited.unwrap_or_else(PoisonError::into_inner);
        stage.go_on()?;
        ensure!(current.number > last, "There is no worker for {access:?}");
        Ok(current.clone())
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
