//! Event channels, with Xen at one end and an open /dev/xen/evtchn at the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use ioreq::{EventChannels, LocalPort, RemotePort, Wake, XenError};
use rustix::io::Errno;

use super::{FakeXen, State};

/// What the kernel keeps for a reader that is slow, in ports, unless a test wants less.
const QUEUE_LEN: usize = 1024;

/// A channel, by Xen's end.
#[derive(Default)]
pub(super) struct Channel {
    /// Which file holds the other end, and its number there.
    bound: Option<(u32, u32)>,
    /// Whether the backend signalled, and Xen did not look yet.
    pub(super) rung: bool,
}

/// What an open file of the kernel's keeps.
#[derive(Default)]
pub(super) struct Queue {
    /// Local port to Xen's.
    ports: BTreeMap<u32, Port>,
    fired: VecDeque<u32>,
    len: Option<usize>,
    overflowed: bool,
    interrupted: bool,
    /// Somebody waits, and nothing has fired.
    sleeps: bool,
    calls: Calls,
    failing_binds: VecDeque<Errno>,
    failing_notifies: VecDeque<Errno>,
    failing_waits: VecDeque<Errno>,
}

struct Port {
    remote: u32,
    masked: bool,
    pending: bool,
}

/// System calls a [`FakeChannels`] stood for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Reads of fired ports that gave something.
    pub waits: u64,
    /// Writes of ports to unmask.
    pub unmasks: u64,
    /// Signals to the guest's side.
    pub notifies: u64,
}

/// An open /dev/xen/evtchn.
pub struct FakeChannels {
    xen: Arc<FakeXen>,
    id: u32,
    killed: AtomicBool,
}

impl FakeChannels {
    pub(super) fn open(xen: Arc<FakeXen>) -> Self {
        let id = {
            let mut state = xen.lock();
            state.next_queue += 1;
            let id = state.next_queue;
            state.queues.insert(id, Queue::default());
            id
        };
        Self { xen, id, killed: AtomicBool::new(false) }
    }

    /// The system calls so far.
    pub fn calls(&self) -> Calls {
        self.with(|queue| queue.calls)
    }

    /// Makes the kernel's queue so short that it overflows with more than `len` fired ports.
    pub fn set_queue_len(&self, len: usize) {
        self.with(|queue| queue.len = Some(len));
    }

    /// Loses what fired, as if more had than the kernel keeps.
    pub fn overflow(&self) {
        self.with(|queue| {
            queue.fired.clear();
            queue.overflowed = true;
        });
        self.xen.to_backend.notify_all();
    }

    /// Makes the next binding of a channel fail.
    pub fn fail_next_bind(&self, errno: Errno) {
        self.with(|queue| queue.failing_binds.push_back(errno));
    }

    /// Makes the next signal to the guest fail.
    pub fn fail_next_notify(&self, errno: Errno) {
        self.with(|queue| queue.failing_notifies.push_back(errno));
    }

    /// Makes the next wait fail.
    pub fn fail_next_wait(&self, errno: Errno) {
        self.with(|queue| queue.failing_waits.push_back(errno));
        self.xen.to_backend.notify_all();
    }

    /// How many channels are bound.
    pub fn bound(&self) -> usize {
        self.with(|queue| queue.ports.len())
    }

    /// Closes the file, as the kernel does when the process is killed: Xen's ends stay, unbound, and
    /// can be bound again. Whoever still has this gets `EBADF`.
    pub fn close(&self) {
        self.xen.lock().close(self.id);
        self.xen.to_backend.notify_all();
    }

    /// As [`close`](Self::close), once nothing fires and somebody waits; that one never comes back from it: a process that
    /// is killed does nothing more. Threads that this stops are lost to the test.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        let closed = self.xen.wait_for(|state| {
            let sleeps = state.queues.get(&self.id).is_some_and(|queue| queue.sleeps && queue.fired.is_empty());
            sleeps.then(|| state.close(self.id))
        });
        assert!(closed.is_some(), "nobody waits for events");
        self.xen.to_backend.notify_all();
    }

    /// What is said of a closed file. The threads of a killed process end here.
    fn closed(&self) -> XenError {
        while self.killed.load(Ordering::Acquire) {
            thread::park();
        }
        XenError::new(Errno::BADF)
    }

    fn with<T>(&self, op: impl FnOnce(&mut Queue) -> T) -> T {
        op(self.xen.lock().queues.get_mut(&self.id).expect("open"))
    }
}

impl EventChannels for FakeChannels {
    fn bind(&self, remote: RemotePort) -> Result<LocalPort, XenError> {
        let mut state = self.xen.lock();
        if state.dying {
            return Err(XenError::new(Errno::SRCH));
        }
        if let Some(errno) = state.queues.get_mut(&self.id).expect("open").failing_binds.pop_front() {
            return Err(XenError::new(errno));
        }
        let local = state.new_port();
        let channel = state.channels.get_mut(&remote.0).ok_or(XenError::new(Errno::INVAL))?;
        if channel.bound.is_some() {
            return Err(XenError::new(Errno::INVAL));
        }
        channel.bound = Some((self.id, local));
        let port = Port { remote: remote.0, masked: false, pending: false };
        state.queues.get_mut(&self.id).expect("open").ports.insert(local, port);
        // evtchn_bind_interdomain sets the new end pending: a signal may have been lost before.
        state.signal(remote.0);
        drop(state);
        self.xen.to_backend.notify_all();
        Ok(LocalPort(local))
    }

    fn wait(&self, fired: &mut [LocalPort]) -> Result<Wake, XenError> {
        let mut state = self.xen.lock();
        while let Some(queue) = state.queues.get_mut(&self.id) {
            queue.sleeps = false;
            if let Some(errno) = queue.failing_waits.pop_front() {
                return Err(XenError::new(errno));
            }
            if std::mem::take(&mut queue.interrupted) {
                return Ok(Wake::Interrupted);
            }
            if queue.overflowed {
                return Ok(Wake::Overflowed);
            }
            if !queue.fired.is_empty() {
                queue.calls.waits += 1;
                let count = queue.fired.len().min(fired.len());
                for (slot, port) in fired.iter_mut().zip(queue.fired.drain(..count)) {
                    *slot = LocalPort(port);
                }
                return Ok(Wake::Fired(count));
            }
            queue.sleeps = true;
            state = self.xen.to_backend.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        Err(self.closed())
    }

    fn unmask(&self, ports: &[LocalPort]) -> Result<(), XenError> {
        {
            let mut state = self.xen.lock();
            let Some(queue) = state.queues.get_mut(&self.id) else {
                drop(state);
                return Err(self.closed());
            };
            queue.calls.unmasks += 1;
            for port in ports {
                queue.unmask(port.0);
            }
        }
        self.xen.to_backend.notify_all();
        Ok(())
    }

    fn notify(&self, port: LocalPort) -> Result<(), XenError> {
        let mut state = self.xen.lock();
        let dying = state.dying;
        let Some(queue) = state.queues.get_mut(&self.id) else {
            drop(state);
            return Err(self.closed());
        };
        queue.calls.notifies += 1;
        let failure = queue.failing_notifies.pop_front();
        let Some(remote) = queue.ports.get(&port.0).map(|port| port.remote) else {
            state.violation(format!("signal to {port:?}, which is not bound here"));
            return Err(XenError::new(Errno::INVAL));
        };
        if dying {
            return Err(XenError::new(Errno::NOTCONN));
        }
        if let Some(channel) = state.channels.get_mut(&remote) {
            // Even a signal that fails a test's way arrives: what is tested is that the failure is survived.
            channel.rung = true;
        }
        drop(state);
        self.xen.to_guest.notify_all();
        failure.map_or(Ok(()), |errno| Err(XenError::new(errno)))
    }

    fn reset(&self) -> Result<(), XenError> {
        self.with(|queue| {
            queue.fired.clear();
            queue.overflowed = false;
        });
        Ok(())
    }

    fn interrupt(&self, _waiter: &JoinHandle<()>) -> Result<(), XenError> {
        self.with(|queue| queue.interrupted = true);
        self.xen.to_backend.notify_all();
        Ok(())
    }
}

impl Drop for FakeChannels {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    fn deliver(&mut self, local: u32) {
        let Some(port) = self.ports.get_mut(&local) else { return };
        if port.masked {
            port.pending = true;
            return;
        }
        // evtchn_interrupt: a port that fires is masked until it is written back, also if the
        // queue has no room for it.
        port.masked = true;
        if self.fired.len() < self.len.unwrap_or(QUEUE_LEN) {
            self.fired.push_back(local);
        } else {
            self.overflowed = true;
        }
    }

    fn unmask(&mut self, local: u32) {
        let Some(port) = self.ports.get_mut(&local) else { return };
        port.masked = false;
        if std::mem::take(&mut port.pending) {
            self.deliver(local);
        }
    }
}

impl State {
    /// Adds a channel that the backend may bind to.
    pub(super) fn new_channel(&mut self) -> u32 {
        let port = self.new_port();
        self.channels.insert(port, Channel::default());
        port
    }

    /// An open file goes; Xen's ends stay, unbound.
    fn close(&mut self, queue: u32) {
        self.queues.remove(&queue);
        for channel in self.channels.values_mut() {
            channel.bound = channel.bound.filter(|(bound, _)| *bound != queue);
        }
    }

    /// Xen signals: lost, if nobody is bound.
    pub(super) fn signal(&mut self, remote: u32) {
        let bound = self.channels.get(&remote).and_then(|channel| channel.bound);
        if let Some((queue, local)) = bound
            && let Some(queue) = self.queues.get_mut(&queue)
        {
            queue.deliver(local);
        }
    }
}
