//! The lane's side: what wakes it, and what becomes of the connection.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use virtio_backend::{Bell, Fault, Interest, Request, Ring, Wake, Watcher, Worker, count_failure};

use crate::connection::Connection;
use crate::introduction::{hold_to, meet_again};
use crate::retry::Retry;
use crate::session::Session;
use crate::shared::{Kept, Shared};
use crate::trouble::Trouble;
use crate::wire::ConnectionError;

/// How often, in one pass, it is looked for what the backend says of its own accord.
const HEARINGS: usize = 16;

/// What the watcher knows descriptors by.
const SOCKET: u64 = 0;
const CHANNEL: u64 = 1;

const READABLE: Interest = Interest { readable: true, writable: false };

/// Works all queues of the device.
pub(crate) struct FrontendWorker {
    shared: Arc<Shared>,
    /// What the driver has accepted.
    features: u64,
    link: Link,
    /// By queue: requests taken from the guest that no backend has. They come before what is in the guest's ring.
    waiting: Vec<VecDeque<Request>>,
    /// By queue: how the backend says that it is done with something. They outlive a backend: one that is gone can wake
    /// us for nothing by them, and no more.
    calls: Vec<Bell>,
    watcher: Watcher,
    retry: Retry,
}

/// How things stand with the backend.
enum Link {
    /// There is none. The timer says when to have one looked for, and the bell when that has come to something.
    Down,
    /// There is one, which has no queues.
    Idle(Connection),
    /// It is at work.
    Up(Session),
}

/// Which of the worker's sources wakes it.
enum Source {
    /// The backend is done with something in this queue.
    Call(usize),
    /// The driver has written to configuration space, queues were taken from the backend that it may have again, there is
    /// an answer from whoever looks for a backend, or there was more to hear than fits a pass.
    Bell,
    /// It is time to have a backend looked for.
    Timer,
    /// The backend says something, or is gone.
    Watcher,
}

impl FrontendWorker {
    /// Takes over the connection that there is, if it still works.
    pub(crate) fn new(shared: Arc<Shared>, features: u64) -> io::Result<Self> {
        let queues = shared.found.queues;
        let kept = shared.take_connection();
        // What comes there may still be answers to the process that died: then another connection is better.
        let was_left = matches!(kept, Some(Kept::Left(_)));
        let mut worker = Self {
            features,
            link: Link::Down,
            waiting: (0..queues).map(|_| VecDeque::new()).collect(),
            calls: (0..queues).map(|_| Bell::new()).collect::<io::Result<_>>()?,
            watcher: Watcher::new()?,
            retry: Retry::new()?,
            shared,
        };
        let resumed = kept.map(|kept| worker.resume(kept));
        match resumed {
            Some(Ok(connection)) => worker.connect(connection)?,
            Some(Err(error)) if !error.may_pass() && !was_left => {
                worker.shared.end_handed();
                return Err(io::Error::other(error));
            }
            Some(Err(error)) => {
                worker.shared.end_handed();
                worker.note_loss(&error);
                worker.retry.now()?;
            }
            None => worker.retry.now()?,
        }
        Ok(worker)
    }

    fn resume(&self, kept: Kept) -> Result<Connection, ConnectionError> {
        match kept {
            Kept::New(socket) => {
                let mut connection = Connection::adopt(socket)?;
                hold_to(&mut connection, &self.shared.plan, &self.shared.found)?;
                Ok(connection)
            }
            Kept::Left(socket) => {
                let mut connection = Connection::adopt(socket)?;
                (0..self.shared.found.queues).try_for_each(|queue| connection.talk().stop_ring(queue).map(drop))?;
                connection.talk().reset()?;
                hold_to(&mut connection, &self.shared.plan, &self.shared.found)?;
                Ok(connection)
            }
            Kept::Used(mut connection) => {
                connection.give_time();
                connection.look()?;
                connection.talk().reset()?;
                Ok(connection)
            }
        }
    }

    /// There is a backend now.
    fn connect(&mut self, mut connection: Connection) -> io::Result<()> {
        // For changes: others may have its descriptor, too, and then the kernel watches it on after it was closed here.
        self.watcher.add_for_changes(&connection, SOCKET)?;
        if let Some(channel) = connection.channel() {
            self.watcher.add(channel, CHANNEL, READABLE)?;
        }
        self.link = Link::Idle(connection);
        Ok(())
    }

    fn attend(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Trouble> {
        if let Some(connection) = self.connection() {
            connection.give_time();
        }
        match wake {
            Wake::Queue(queue) => {
                self.set_to_work(rings)?;
                self.serve(queue, rings)?;
            }
            Wake::Source(index) => match self.source(index) {
                Source::Call(queue) => {
                    self.shared.counters.backend_calls.fetch_add(1, Relaxed);
                    self.collect(queue, rings)?;
                    self.serve(queue, rings)?;
                }
                Source::Bell => {
                    self.shared.bell.silence();
                    self.reconnect(rings)?;
                    self.set_to_work(rings)?;
                    self.tell_config()?;
                    self.hear()?;
                }
                Source::Timer => {
                    if let Link::Down = self.link {
                        self.shared.asking.ask();
                    }
                }
                Source::Watcher => self.hear()?,
            },
        }
        Ok(())
    }

    fn source(&self, index: usize) -> Source {
        match index.checked_sub(self.calls.len()) {
            None => Source::Call(index),
            Some(0) => Source::Bell,
            Some(1) => Source::Timer,
            Some(_) => Source::Watcher,
        }
    }

    /// Gives the backend, if there is one, the queues that it does not have yet.
    fn set_to_work(&mut self, rings: &mut [Ring]) -> Result<(), Trouble> {
        match mem::replace(&mut self.link, Link::Down) {
            Link::Down => return Ok(()),
            Link::Idle(connection) => self.begin(connection, rings)?,
            Link::Up(mut session) => {
                let started = session.start_queues(rings, &self.calls);
                self.link = Link::Up(session);
                started?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, connection: Connection, rings: &mut [Ring]) -> Result<(), Trouble> {
        let Shared { layout, plan, counters, config, .. } = &*self.shared;
        let session = Session::begin(connection, self.features, *layout, plan.queue_size, Arc::clone(counters))?;
        self.link = Link::Up(session);
        config.repeat();
        self.tell_config()?;
        self.read_config()?;
        if let Link::Up(session) = &mut self.link {
            session.start_queues(rings, &self.calls)?;
        }
        (0..rings.len()).try_for_each(|queue| self.serve(queue, rings))?;
        Ok(())
    }

    fn serve(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        let place = self.waiting.get_mut(queue).zip(rings.get_mut(queue));
        let (Link::Up(session), Some((waiting, ring))) = (&mut self.link, place) else { return Ok(()) };
        session.serve(queue, ring, waiting)
    }

    fn collect(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Trouble> {
        let (Link::Up(session), Some(ring)) = (&mut self.link, rings.get_mut(queue)) else { return Ok(()) };
        session.collect(queue, ring)
    }

    /// Tells the backend what the driver wrote to configuration space.
    fn tell_config(&mut self) -> Result<(), ConnectionError> {
        let Link::Up(session) = &mut self.link else { return Ok(()) };
        for (offset, bytes) in self.shared.config.take_unheard() {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            match session.connection.talk().set_config(offset, &bytes) {
                Err(ConnectionError::Refused(_)) => {
                    self.shared.counters.refused_config_writes.fetch_add(1, Relaxed);
                }
                told => told?,
            }
        }
        Ok(())
    }

    /// Reads configuration space anew, and tells the driver if it is another.
    fn read_config(&mut self) -> Result<(), ConnectionError> {
        let size = self.shared.plan.config_size;
        let Some(connection) = self.connection() else { return Ok(()) };
        let Some(bytes) = connection.talk().config(size)? else { return Ok(()) };
        self.shared.config.replace(bytes, || {
            self.shared.counters.config_changes.fetch_add(1, Relaxed);
            self.shared.config_changed();
        });
        Ok(())
    }

    fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.link {
            Link::Down => None,
            Link::Idle(connection) => Some(connection),
            Link::Up(session) => Some(&mut session.connection),
        }
    }

    /// Hears what the backend says without being asked, and whether it is there. What is said without an end is
    /// listened to a little at a time.
    fn hear(&mut self) -> Result<(), Trouble> {
        for _ in 0..HEARINGS {
            let ready = self.watcher.ready().map_err(ConnectionError::Host)?;
            let mut tokens = ready.map(|ready| ready.token).peekable();
            if tokens.peek().is_none() {
                return Ok(());
            }
            for token in tokens {
                match token {
                    SOCKET => self.connection().map_or(Ok(()), |connection| connection.look())?,
                    _ => self.hear_channel()?,
                }
            }
        }
        self.shared.bell.ring();
        Ok(())
    }

    fn hear_channel(&mut self) -> Result<(), ConnectionError> {
        let Some(connection) = self.connection() else { return Ok(()) };
        let Some(channel) = connection.channel() else { return Ok(()) };
        let heard = channel.listen()?;
        if heard.ended {
            connection.close_channel();
        }
        if heard.config_changed {
            self.read_config()?;
        }
        Ok(())
    }

    /// Meets the backend that was looked for in the place of the one that is gone, if there is an answer.
    fn reconnect(&mut self, rings: &mut [Ring]) -> Result<(), Trouble> {
        if !matches!(self.link, Link::Down) {
            return Ok(());
        }
        let Some(outcome) = self.shared.asking.take_answer() else { return Ok(()) };
        let socket = outcome.map_err(ConnectionError::Absent)?;
        let connection = meet_again(socket, &self.shared.plan, &self.shared.found)?;
        self.connect(connection).map_err(ConnectionError::Host)?;
        self.set_to_work(rings)?;
        self.retry.succeeded();
        let reconnects = self.shared.counters.reconnects.fetch_add(1, Relaxed) + 1;
        let socket = self.shared.plan.socket.display();
        tracing::info!(name: "vhost_user.reconnected", %socket, reconnects, "The device's backend is back");
        Ok(())
    }

    /// Deals with what went wrong: waits for another backend, or gives up.
    fn weather(&mut self, outcome: Result<(), Trouble>, rings: &mut [Ring]) -> Result<(), Fault> {
        match outcome {
            Ok(()) => Ok(()),
            Err(Trouble::Fault(fault)) => Err(fault),
            Err(Trouble::Connection(error)) if error.may_pass() => self.lose(&error, rings),
            Err(Trouble::Connection(error)) => {
                self.shared.end_handed();
                self.link = Link::Down;
                Err(Fault::Host { doing: "working with its backend", source: io::Error::other(error) })
            }
        }
    }

    /// The backend is gone. What it had not finished waits for the next.
    fn lose(&mut self, error: &ConnectionError, rings: &mut [Ring]) -> Result<(), Fault> {
        self.shared.end_handed();
        match mem::replace(&mut self.link, Link::Down) {
            // It was looked for in vain.
            Link::Down => self.note_absence(error),
            Link::Idle(_) => self.note_loss(error),
            Link::Up(session) => {
                self.note_loss(error);
                let unfinished = session.abandon(rings)?;
                self.keep_waiting(unfinished);
            }
        }
        self.retry.later().map_err(|source| Fault::Host { doing: "setting a timer", source })
    }

    /// Puts what was begun before what was not.
    fn keep_waiting(&mut self, unfinished: Vec<VecDeque<Request>>) {
        for (waiting, mut begun) in self.waiting.iter_mut().zip(unfinished) {
            begun.append(waiting);
            *waiting = begun;
        }
    }

    fn note_loss(&self, error: &ConnectionError) {
        if let Some(losses) = count_failure(&self.shared.counters.losses) {
            let socket = self.shared.plan.socket.display();
            tracing::warn!(name: "vhost_user.lost", %socket, %error, losses,
                "The device has lost its backend, and waits for it to come back");
        }
    }

    fn note_absence(&self, error: &ConnectionError) {
        if let Some(attempts) = count_failure(&self.shared.counters.failed_reconnects) {
            let socket = self.shared.plan.socket.display();
            tracing::warn!(name: "vhost_user.absent", %socket, %error, attempts,
                "The device's backend is not back yet");
        }
    }

    /// Takes the queues away from a backend, and gives the guest what it finishes. Returns the connection if it is fit
    /// for further use.
    fn stop(&mut self, mut session: Session, rings: &mut [Ring]) -> Result<Option<Connection>, Fault> {
        let stopped = session.stop();
        let settled = match &stopped {
            Ok(bases) => session.settle(rings, bases),
            Err(_) => Ok(()),
        };
        match (stopped, settled) {
            (_, Err(Trouble::Fault(fault))) => Err(fault),
            (Err(error), _) | (Ok(_), Err(Trouble::Connection(error))) => {
                self.shared.end_handed();
                self.note_loss(&error);
                let unfinished = session.abandon(rings)?;
                self.keep_waiting(unfinished);
                Ok(None)
            }
            (Ok(_), Ok(())) => {
                let (connection, unfinished) = session.into_unfinished();
                self.keep_waiting(unfinished);
                Ok(Some(connection))
            }
        }
    }
}

impl Worker for FrontendWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let outcome = self.attend(wake, rings);
        self.weather(outcome, rings)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let calls = self.calls.iter().map(AsFd::as_fd);
        calls.chain([self.shared.bell.as_fd(), self.retry.as_fd(), self.watcher.as_fd()]).collect()
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        self.link = match mem::replace(&mut self.link, Link::Down) {
            Link::Up(session) => self.stop(session, rings)?.map_or(Link::Down, Link::Idle),
            link => link,
        };
        if let Link::Down = self.link {
            self.retry.later().map_err(|source| Fault::Host { doing: "setting a timer", source })?;
        }
        for (ring, waiting) in rings.iter_mut().zip(&mut self.waiting) {
            for request in waiting.drain(..) {
                ring.push(request, 0)?;
            }
        }
        // It may be that a single queue ends, and the others go on without a kick.
        self.shared.bell.ring();
        Ok(())
    }
}

impl Drop for FrontendWorker {
    /// Leaves the connection to the next worker. After a fault the backend still has its queues.
    fn drop(&mut self) {
        self.shared.config.forget();
        match mem::replace(&mut self.link, Link::Down) {
            Link::Up(mut session) => {
                if session.stop().is_ok() {
                    self.shared.keep_connection(session.into_unfinished().0);
                } else {
                    self.shared.end_handed();
                }
            }
            Link::Idle(connection) => self.shared.keep_connection(connection),
            Link::Down => {}
        }
    }
}
