//! The worker of the device's one lane: who has a turn in a pass, and what makes another one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_backend::{Bell, Fault, Ring, Wake, Worker};

use crate::device::Place;
use crate::hub::Hub;

/// Works the three queues. Dropped at reset, when all connections close with it (virtio 1.2 §5.10.6.7 has an event for
/// migration only; none is ever sent).
pub(crate) struct VsockWorker {
    hub: Hub,
    /// Rung by the worker itself, for another pass.
    again: Bell,
}

impl VsockWorker {
    /// # Errors
    /// The host has no descriptor for it.
    pub(crate) fn new(place: Arc<Place>) -> io::Result<Self> {
        Ok(Self { hub: Hub::new(place)?, again: Bell::new()? })
    }

    /// The driver's packets, unless there is no room left for the answers.
    fn serve(&mut self, tx: &mut Ring) -> Result<(), Fault> {
        if self.hub.is_out_of_resources() {
            return tx.decline_kicks();
        }
        tx.serve(|tx, packet| {
            self.hub.take(&packet);
            tx.push(packet, 0)
        })
    }
}

impl Worker for VsockWorker {
    /// Whatever woke it, all have a turn: a packet either way may make room for others.
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let [rx, tx, event] = rings else { return Err(Fault::Bug("a socket device has three queues".to_owned())) };
        // Buffers are taken when there is something to put into them, and of events there are none.
        rx.decline_kicks()?;
        event.decline_kicks()?;
        let more_news = match wake {
            Wake::Source(_) => self.hub.look().map_err(host_fault)?,
            // Of what has become ready the watcher tells by a wake of its own.
            Wake::Queue(_) => false,
        };
        let now = Instant::now();
        self.hub.catch_up(now);
        let stood_still = self.hub.is_out_of_resources();
        self.serve(tx)?;
        let more_callers = self.hub.let_in();
        let more_packets = self.hub.fill(rx)?;
        self.hub.table.arm(now).map_err(host_fault)?;
        if more_news || more_callers || more_packets || (stood_still && !self.hub.is_out_of_resources()) {
            self.again.ring();
        }
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.hub.watcher.as_fd(), self.again.as_fd()]
    }
}

fn host_fault(source: io::Error) -> Fault {
    Fault::Host { doing: "waiting for sockets", source }
}
