//! Who starts workers and kills them. It keeps what they have to share: memory, record, image and the interrupt.

use std::fs::File;
use std::hint;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_memory::SharedMemory;
use virtio_backend::Record;
use virtio_disk::Format;

use crate::bus::Bus;
use crate::queue::used_indexes;
use crate::stage::{Event, Events, PATIENCE, Stage};
use crate::{wire, worker};

/// The longest time from the chosen event to the kill.
const DELAY_MICROS: f64 = 2000.0;

/// The longest time from the start of a worker to a kill that waits for nothing else: a start takes less.
const START_MICROS: f64 = 8000.0;

/// How long a kill waits for its event, which may not come.
const AT_MOST: Duration = Duration::from_millis(20);

/// What a worker is killed after.
enum Life {
    /// Its start: within its first instructions, or while it takes over.
    Start,
    /// So many events of a kind, if they come soon. Resets, of which there are few, may do as well.
    Event { event: Event, count: u64, or_reset: bool },
    /// So many answers, however long the first of them takes: shows how long a kill is felt.
    Answers(u64),
}

/// What every worker gets, and how it is started.
pub(crate) struct Broker {
    /// The program that is a worker when it is told so.
    pub(crate) program: PathBuf,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) record: Record,
    /// Each worker gets an empty record instead.
    pub(crate) forgets: bool,
    pub(crate) image: File,
    pub(crate) format: Format,
    pub(crate) interrupt: OwnedFd,
    pub(crate) random: fastrand::Rng,
}

impl Broker {
    /// Starts and kills so many workers, and then starts one that may live.
    ///
    /// # Errors
    /// A worker ends by itself, or never gets to work.
    pub(crate) fn kill(&mut self, kills: u64, bus: &Bus, stage: &Stage) -> Result<Worker> {
        let mut next = self.start(bus)?;
        let mut life = self.draw();
        for _ in 0..kills {
            self.wait_for(&life, stage)?;
            let when = next.kill()?;
            life = self.draw();
            match life {
                Life::Answers(_) => stage.killed(when, used_indexes(&self.memory)),
                _ => stage.forget_kill(),
            }
            next = self.start(bus)?;
        }
        Ok(next)
    }

    fn start(&self, bus: &Bus) -> Result<Worker> {
        let (ours, theirs) = UnixStream::pair()?;
        // Each worker has an open file description of its own, which its locks go with.
        let record = if self.forgets { Record::new()?.reopen()? } else { self.record.reopen()? };
        wire::hand_over(&ours, [self.memory.as_fd(), record.as_fd(), self.image.as_fd()])?;
        let worker = Command::new(&self.program)
            .args([worker::WORD, worker::word_of(self.format)])
            .stdin(OwnedFd::from(theirs))
            .stdout(self.interrupt.try_clone()?)
            .spawn();
        bus.attach(ours);
        Ok(Worker(worker.context("Cannot start a worker")?))
    }

    fn draw(&mut self) -> Life {
        let random = &mut self.random;
        let or_reset = random.bool();
        let (event, most) = match random.u8(0..20) {
            0..3 => return Life::Start,
            3..8 => return Life::Answers(random.u64(1..=4)),
            8..14 => (Event::Access, 12),
            14..16 => (Event::Submission, 4),
            16..18 => (Event::Interrupt, 3),
            _ => (Event::Answer, 12),
        };
        Life::Event { event, count: random.u64(1..=most), or_reset }
    }

    fn wait_for(&mut self, life: &Life, stage: &Stage) -> Result<()> {
        let before = stage.events();
        let since = |now: &Events, event| now.of(event) - before.of(event);
        let most = match *life {
            Life::Start => START_MICROS,
            Life::Event { event, count, or_reset } => {
                stage.wait(AT_MOST, |now| since(now, event) >= count || or_reset && since(now, Event::Reset) > 0);
                DELAY_MICROS
            }
            Life::Answers(count) => {
                let has_worked = stage.wait(PATIENCE, |now| since(now, Event::Answer) >= count);
                stage.go_on()?;
                ensure!(has_worked, "A worker has answered nothing for {PATIENCE:?}");
                DELAY_MICROS
            }
        };
        stage.go_on()?;
        // As many between 1 and 10 microseconds as between 100 and 1000.
        pause(Duration::from_secs_f64(most.powf(self.random.f64()) / 1e6));
        Ok(())
    }
}

/// Short times are too short to sleep.
fn pause(time: Duration) {
    let until = Instant::now() + time;
    if time > Duration::from_micros(200) {
        thread::sleep(time);
    }
    while Instant::now() < until {
        hint::spin_loop();
    }
}

/// One that runs.
pub(crate) struct Worker(Child);

impl Worker {
    /// Kills it, and waits until the kernel has done with it and its I/O. Returns when the kill was.
    ///
    /// # Errors
    /// It had ended already, which no worker does.
    pub(crate) fn kill(mut self) -> Result<Instant> {
        let when = Instant::now();
        self.0.kill()?;
        let status = self.0.wait()?;
        ensure!(status.signal() == Some(9), "A worker ended by itself: {status}");
        Ok(when)
    }
}
