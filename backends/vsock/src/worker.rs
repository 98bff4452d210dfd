//! The worker of the device's one lane: who has a turn in a pass, and what makes another one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_backend::{Bell, Fault, Ring, Wake, Worker};

use crate::device::Place;
use crate::hub::Hub;
use crate::interruption::Interruption;

/// Works the three queues. Dropped at reset, when all connections close with it.
pub(crate) struct VsockWorker {
    hub: Hub,
    interruption: Interruption,
    /// Rung by the worker itself, for another pass.
    again: Bell,
}

impl VsockWorker {
    /// One whose guest is to be told first, if `was_interrupted`, that its connections are gone.
    ///
    /// # Errors
    /// The host has no descriptor for it.
    pub(crate) fn new(place: Arc<Place>, was_interrupted: bool) -> io::Result<Self> {
        let interruption = if was_interrupted { Interruption::Untold } else { Interruption::None };
        Ok(Self { hub: Hub::new(place)?, interruption, again: Bell::new()? })
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
        // Buffers are taken when there is something to put into them.
        rx.decline_kicks()?;
        event.decline_kicks()?;
        let more_news = match wake {
            Wake::Source(_) => self.hub.look().map_err(host_fault)?,
            // Of what has become ready the watcher tells by a wake of its own.
            Wake::Queue(_) => false,
        };
        let now = Instant::now();
        self.hub.catch_up(now);
        self.hub.take_answers();
        if !self.interruption.is_over(event, &mut self.hub.table, now)? {
            if more_news {
                self.again.ring();
            }
            return self.hub.table.arm(now).map_err(host_fault);
        }
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

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        rings.last_mut().map_or(Ok(()), |event| self.interruption.give_back(event))
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.hub.watcher.as_fd(), self.again.as_fd(), self.hub.place.switchboard.bell.as_fd()]
    }
}

fn host_fault(source: io::Error) -> Fault {
    Fault::Host { doing: "waiting for sockets", source }
}
