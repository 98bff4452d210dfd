//! The lane of one pair of queues: receiveq and transmitq over one port (virtio 1.2 §5.1.2).

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_backend::{Bell, Fault, Interest, Ring, Wake, Watcher, Worker};

use crate::engine::Port;
use crate::receive::{Pass, Place, Receiver};
use crate::shared::{Life, Shared};
use crate::transmit::Sender;

/// Where a port is while no lane works with it.
pub(crate) type Berth = Arc<Mutex<Option<Box<dyn Port>>>>;

/// Order of [`PairWorker::sources`].
const READABLE: usize = 0;
const WRITABLE: usize = 1;
const AGAIN: usize = 2;

/// Receives and sends for one pair of queues.
pub(crate) struct PairWorker {
    /// `Some` until dropped.
    port: Option<Box<dyn Port>>,
    berth: Berth,
    pair: u16,
    shared: Arc<Shared>,
    life: Arc<Life>,
    receiver: Receiver,
    sender: Sender,
    /// Watches the port for room, while there is none.
    watcher: Watcher,
    is_watched: bool,
    /// Wakes the lane for another pass.
    again: Bell,
}

impl PairWorker {
    /// Takes the port out of its berth.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub(crate) fn new(
        pair: u16,
        berth: &Berth,
        shared: Arc<Shared>,
        life: Arc<Life>,
        mtu: Option<u16>,
    ) -> io::Result<Self> {
        let (watcher, again) = (Watcher::new()?, Bell::new()?);
        let (receiver, sender) = (Receiver::new(&life, mtu), Sender::new(life.filter.reader()));
        let port = berth.lock().unwrap_or_else(PoisonError::into_inner).take();
        let port = Some(port.ok_or(ErrorKind::ResourceBusy)?);
        let berth = Arc::clone(berth);
        life.set_running(pair, true, &shared);
        Ok(Self { port, berth, pair, shared, life, receiver, sender, watcher, is_watched: false, again })
    }

    fn receive(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        let Some(port) = self.port.as_deref_mut() else { return Ok(()) };
        let mut place = Place { port, shared: &self.shared, life: &self.life, pair: self.pair };
        if self.receiver.pass(ring, &mut place)? == Pass::More {
            self.again.ring();
        }
        Ok(())
    }

    fn transmit(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        let Some(port) = self.port.as_deref_mut() else { return Ok(()) };
        let mut place = Place { port, shared: &self.shared, life: &self.life, pair: self.pair };
        self.sender.pass(ring, &mut place)?;
        let is_full = match place.port.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) => {
                self.shared.lose_carrier(&error);
                false
            }
            Ok(()) => false,
        };
        if is_full || self.sender.is_blocked() {
            self.watch()?;
        }
        Ok(())
    }

    fn watch(&mut self) -> Result<(), Fault> {
        if let Some(port) = self.port.as_deref().filter(|_| !self.is_watched) {
            let room = Interest { readable: false, writable: true };
            self.watcher.add(port.descriptor(), 0, room).map_err(watch_fault)?;
            self.is_watched = true;
        }
        Ok(())
    }

    fn unwatch(&mut self) -> Result<(), Fault> {
        if let Some(port) = self.port.as_deref().filter(|_| self.is_watched) {
            self.watcher.remove(port.descriptor()).map_err(watch_fault)?;
            self.is_watched = false;
        }
        Ok(())
    }
}

impl Worker for PairWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let [receiveq, transmitq] = rings else { return Err(Fault::Bug("a pair is two queues".to_owned())) };
        match wake {
            Wake::Queue(0) | Wake::Source(READABLE | AGAIN) => self.receive(receiveq)?,
            Wake::Source(WRITABLE) => {
                self.unwatch()?;
                self.sender.unblock();
                self.transmit(transmitq)?;
            }
            Wake::Queue(_) | Wake::Source(_) => self.transmit(transmitq)?,
        }
        let calls = self.port.as_deref_mut().map_or(0, Port::take_calls);
        self.shared.counters.syscalls.fetch_add(calls, Relaxed);
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let port = self.port.as_deref().map(Port::descriptor);
        port.into_iter().chain([self.watcher.as_fd(), self.again.as_fd()]).collect()
    }

    /// Packets are large and a sender waits for none of them: one more is worth a moment. What comes from the host is told
    /// of at once, since somebody may wait for it, and the driver hears of no more while it works on it.
    fn patience(&self, wake: Wake) -> Option<u64> {
        matches!(wake, Wake::Queue(_)).then_some(1)
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        rings.first_mut().map_or(Ok(()), |receiveq| self.receiver.give_back(receiveq))
    }
}

impl Drop for PairWorker {
    fn drop(&mut self) {
        self.life.set_running(self.pair, false, &self.shared);
        *self.berth.lock().unwrap_or_else(PoisonError::into_inner) = self.port.take();
    }
}

fn watch_fault(source: io::Error) -> Fault {
    Fault::Host { doing: "waiting for room in the host's network", source }
}
