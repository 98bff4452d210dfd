//! A lane's engine over NBD: operations become requests on a connection of the lane's own, by as many at a time as there
//! are; when the connection ends they wait, and are sent again on the next.
//!
//! Nothing here waits for the server but [`Engine::wait`], and that for a bounded time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use virtio_backend::Watcher;

use crate::engine::{Done, Engine, Op};

use super::NbdError;
use super::connection::{Connection, Event};
use super::dialer::{Connected, Slot};
use super::life::Life;
use super::patient::{Deadline, poll_for};
use super::shared::Shared;
use super::task::{Task, Tasks};
use super::timer::Timer;

/// How long a reset of the device waits for what the server owes.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// What is watched.
const SOCKET: u64 = 0;
const SLOT: u64 = 1;
const TIMER: u64 = 2;

/// The lane's way to the server.
enum Line {
    Up(Connection),
    /// Asked for anew.
    Down {
        /// Requests do not wait any more.
        fails: bool,
    },
}

/// See the module.
pub(super) struct NbdEngine {
    shared: Arc<Shared>,
    life: Arc<Life>,
    line: Line,
    tasks: Tasks,
    /// Of which a request is to be sent.
    queue: VecDeque<u16>,
    done: VecDeque<Done>,
    in_flight: usize,
    slot: Arc<Slot>,
    timer: Timer,
    /// The timer is set, for a server that is silent.
    listens: bool,
    watcher: Watcher,
    /// Since when the server has not answered anything, over all attempts.
    troubled_since: Option<Instant>,
    drain: Option<Deadline>,
}

impl NbdEngine {
    /// An engine for tags below `depth`, on a connection that is spare, or else on one to come.
    ///
    /// # Errors
    /// The host has no descriptors.
    pub(super) fn new(shared: Arc<Shared>, depth: u16) -> io::Result<Self> {
        let slot = Arc::new(Slot::new()?);
        let (watcher, timer) = (Watcher::new()?, Timer::new()?);
        watcher.add_for_changes(&slot.bell, SLOT)?;
        watcher.add_for_changes(&timer, TIMER)?;
        shared.note_down();
        let mut engine = Self {
            life: shared.join_life(),
            line: Line::Down { fails: false },
            tasks: Tasks::new(depth),
            queue: VecDeque::with_capacity(usize::from(depth)),
            done: VecDeque::with_capacity(usize::from(depth)),
            in_flight: 0,
            slot,
            timer,
            listens: false,
            watcher,
            troubled_since: None,
            drain: None,
            shared,
        };
        match engine.shared.take_spare() {
            Some(spare) => engine.connect(spare)?,
            None => engine.ask()?,
        }
        Ok(engine)
    }

    fn connect(&mut self, connected: Connected) -> io::Result<()> {
        let connection = Connection::new(connected)?;
        self.watcher.add_for_changes(&connection, SOCKET)?;
        self.line = Line::Up(connection);
        self.shared.note_up();
        self.listen()
    }

    /// Asks for a connection; the line is down.
    fn ask(&mut self) -> io::Result<()> {
        let since = *self.troubled_since.get_or_insert_with(Instant::now);
        self.shared.dialer.ask(&self.slot);
        match self.shared.patience.reconnect {
            Some(patience) => self.timer.set((since + patience).saturating_duration_since(Instant::now())),
            None => Ok(()),
        }
    }

    /// Sets the timer for a server that owes an answer, unless it is set.
    fn listen(&mut self) -> io::Result<()> {
        let Some(patience) = self.shared.patience.answer.filter(|_| !self.listens) else { return Ok(()) };
        self.listens = true;
        self.timer.set(patience)
    }

    /// Takes note of what has become ready.
    fn look(&mut self) -> io::Result<()> {
        for ready in self.watcher.ready()? {
            match (ready.token, &mut self.line) {
                (SOCKET, Line::Up(connection)) => {
                    connection.readable |= ready.readable;
                    connection.writable |= ready.writable;
                }
                (SLOT, _) => {
                    self.slot.bell.silence();
                    self.look_into_slot()?;
                }
                (TIMER, _) => {
                    self.timer.silence();
                    self.look_at_clock()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn look_into_slot(&mut self) -> io::Result<()> {
        match self.slot.take() {
            Some(Ok(connected)) => {
                self.connect(connected)?;
                self.shared.note_reconnect();
                Ok(())
            }
            Some(Err(error)) if error.is_for_good() => {
                self.fail(&error);
                Ok(())
            }
            Some(Err(_)) | None => Ok(()),
        }
    }

    fn look_at_clock(&mut self) -> io::Result<()> {
        self.listens = false;
        let patience = self.shared.patience;
        match &self.line {
            Line::Up(connection) => {
                let Some(answer) = patience.answer.filter(|_| self.tasks.any_sent()) else { return Ok(()) };
                let left = answer.saturating_sub(connection.heard.elapsed());
                if left.is_zero() {
                    return self.lose(&NbdError::Silent { seconds: answer.as_secs() });
                }
                self.listens = true;
                self.timer.set(left)
            }
            Line::Down { .. } => {
                let (Some(patience), Some(since)) = (patience.reconnect, self.troubled_since) else { return Ok(()) };
                if since.elapsed() >= patience {
                    self.fail(&NbdError::Gone { seconds: patience.as_secs() });
                }
                Ok(())
            }
        }
    }

    /// Exchanges with the server what there is to.
    fn run(&mut self) -> io::Result<()> {
        while let Line::Up(connection) = &mut self.line {
            match connection.exchange(&mut self.tasks, &mut self.queue) {
                Ok(Event::Answer(tag)) => self.answered(tag),
                Ok(Event::NothingToSend(tag)) => self.finish(tag, Ok(())),
                Ok(Event::Idle) => return Ok(()),
                Ok(Event::More) => {
                    self.slot.bell.ring();
                    return Ok(());
                }
                Err(error) => self.lose(&error)?,
            }
        }
        Ok(())
    }

    fn answered(&mut self, tag: u16) {
        let Line::Up(connection) = &mut self.line else { return };
        if !connection.is_proven {
            connection.is_proven = true;
            self.troubled_since = None;
            self.shared.dialer.succeeded();
        }
        let Some(task) = self.tasks.get_mut(tag) else { return };
        match task.advance(connection.export()) {
            Some(result) => self.finish(tag, result),
            None => self.queue.push_back(tag),
        }
    }

    fn finish(&mut self, tag: u16, result: io::Result<()>) {
        let Some(task) = self.tasks.remove(tag) else { return };
        let result = result.and_then(|()| self.account(&task));
        self.done.push_back(task.into_done(tag, result));
    }

    /// Keeps count of what is acknowledged and what is durable; a flush that comes too late is none.
    fn account(&self, task: &Task) -> io::Result<()> {
        if task.leaves_unflushed() && self.shared.export.can_flush() {
            self.life.acknowledge();
        }
        if task.is_flush() && !self.life.flushed(task.acknowledged) {
            return Err(io::Error::other("the server went away with writes that had not been flushed"));
        }
        Ok(())
    }

    /// The connection is gone: what it took waits for another.
    fn lose(&mut self, why: &NbdError) -> io::Result<()> {
        let Line::Up(connection) = std::mem::replace(&mut self.line, Line::Down { fails: false }) else {
            return Ok(());
        };
        self.shared.note_loss(why);
        self.shared.note_down();
        // One that has broken the protocol once is not worth being asked at once.
        if !connection.is_proven || matches!(why, NbdError::Lied(_)) {
            self.shared.dialer.strike();
        }
        drop(connection);
        self.listens = false;
        if self.life.lose_connection() {
            self.shared.note_doubt();
        }
        let again = self.tasks.restart_sent();
        self.shared.note_resent(again.len());
        self.queue.retain(|tag| !again.contains(tag));
        let waiting = std::mem::replace(&mut self.queue, again.into());
        self.queue.extend(waiting);
        self.ask()
    }

    /// Requests do not wait any more for a server.
    fn fail(&mut self, why: &NbdError) {
        if let Line::Down { fails } = &mut self.line
            && !std::mem::replace(fails, true)
        {
            self.shared.note_failing(why);
        }
        self.fail_all();
    }

    fn fail_all(&mut self) {
        while let Some(tag) = self.queue.pop_front() {
            self.finish(tag, Err(io::Error::new(io::ErrorKind::NotConnected, "the NBD server is gone")));
        }
    }

    /// Waits a while for something to end. Without a server nothing will; requests of a device that is being reset do
    /// not wait for one to come back.
    fn wait_a_while(&mut self) -> io::Result<()> {
        let deadline = *self.drain.get_or_insert_with(|| Deadline::after(DRAIN_PATIENCE));
        while self.done.is_empty() && self.in_flight > 0 {
            match (&self.line, deadline.left()) {
                (Line::Down { .. }, _) => self.fail_all(),
                (Line::Up(_), None) => self.lose(&NbdError::Silent { seconds: DRAIN_PATIENCE.as_secs() })?,
                (Line::Up(_), Some(left)) => {
                    poll_for(self.watcher.as_fd(), PollFlags::IN, left)?;
                    self.kick()?;
                }
            }
        }
        Ok(())
    }
}

impl Engine for NbdEngine {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        let acknowledged = self.life.acknowledged();
        let task = self.tasks.insert(tag, op)?;
        task.acknowledged = acknowledged;
        let fits = task.fits(&self.shared.export);
        self.in_flight += 1;
        self.drain = None;
        if !fits {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not in whole blocks of the export, or beyond it");
            self.finish(tag, Err(error));
            return Ok(());
        }
        self.queue.push_back(tag);
        match &mut self.line {
            Line::Down { fails: true } => self.fail_all(),
            Line::Up(connection) if self.shared.patience.answer.is_some() => {
                if self.in_flight == 1 {
                    connection.heard = Instant::now();
                }
                self.listen()?;
            }
            Line::Up(_) | Line::Down { fails: false } => {}
        }
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        self.look()?;
        self.run()
    }

    fn reap(&mut self) -> Option<Done> {
        let done = self.done.pop_front()?;
        self.in_flight -= 1;
        Some(done)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.kick()?;
        self.wait_a_while()
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watcher.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for NbdEngine {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.line, Line::Down { fails: false }) {
            Line::Up(connection) if !self.tasks.any_sent() => {
                if let Some(connected) = connection.into_idle() {
                    // The next one watches it by itself.
                    let _ = self.watcher.remove(&connected.socket);
                    self.shared.keep(connected);
                }
            }
            Line::Up(_) => {}
            Line::Down { .. } => self.shared.note_up(),
        }
    }
}
