//! One guest, and thousands of workers one after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use anyhow::{Context, Result, anyhow};
use guest_memory::SharedMemory;
use rustix::event::{EventfdFlags, eventfd};
use virtio_backend::Record;
use virtio_disk::Format;

use crate::broker::Broker;
use crate::bus::Bus;
use crate::guest::{Guest, Tally};
use crate::image::Image;
use crate::layout::BYTES;
use crate::oracle::SECTOR;
use crate::stage::Stage;
use crate::times::Times;

/// Sectors of the disk: so few that requests often meet.
const SECTORS: usize = 2048;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The program that serves as a worker if its one argument is [`WORD`](crate::WORD).
    pub program: PathBuf,
    /// Where the image is made, for as long as it takes.
    pub folder: PathBuf,
    /// What it is made of.
    pub format: Format,
    /// How often to kill.
    pub kills: u64,
    /// What chance decides follows from it; where in the worker's work that is does not.
    pub seed: u64,
    /// As if the broker did not keep the record: each worker gets an empty one. Has to be found out.
    pub forgets: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Workers killed.
    pub kills: u64,
    /// What the guest has seen.
    pub tally: Tally,
    /// From kills to the first request that the next worker answered, as the guest saw it: of those kills before which it was
    /// decided to wait for that.
    pub answered: Times,
    /// Of the same kills, the time until the kernel had ended the worker.
    pub ended: Times,
    /// How long all of it took.
    pub took: Duration,
}

impl Campaign {
    /// Does it.
    ///
    /// # Errors
    /// The guest has met what no driver may meet, or the host does not give what it takes.
    pub fn run(&self) -> Result<Report> {
        let started = Instant::now();
        let image = Image::new(&self.folder, self.format, SECTORS * SECTOR)?;
        let memory = Arc::new(SharedMemory::new("kills-guest", BYTES).context("Cannot make a guest's memory")?);
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC)?;
        let mut random = fastrand::Rng::with_seed(self.seed);
        let (bus, stage) = (Bus::default(), Stage::default());
        let guest = Guest::new(&bus, &stage, &memory, interrupt.try_clone()?, SECTORS, random.fork());
        let mut broker = Broker {
            program: self.program.clone(),
            memory: Arc::clone(&memory),
            record: Record::new()?,
            forgets: self.forgets,
            image: image.open()?,
            format: self.format,
            interrupt,
            random: random.fork(),
        };
        let (lived, killed) = thread::scope(|scope| {
            let guest = scope.spawn(|| guest.live().inspect_err(|_| stage.fail()));
            let last = broker.kill(self.kills, &bus, &stage).inspect_err(|_| stage.fail());
            stage.end();
            let lived = guest.join().unwrap_or_else(|_panic| Err(anyhow!("The guest panicked")));
            (lived, last.and_then(|last| last.kill()))
        });
        let (tally, mut oracle) = match (lived, killed) {
            (Ok(lived), Ok(_)) => lived,
            (Err(guest), Err(broker)) => return Err(anyhow!("{guest:#}\nThe broker: {broker:#}")),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        oracle.check_all(&image.read()?).context("The image at the end")?;
        let felt = stage.felt();
        let answered = felt.iter().map(|felt| felt.answered).collect();
        let ended = felt.iter().map(|felt| felt.ended).collect();
        Ok(Report { kills: self.kills, tally, answered, ended, took: started.elapsed() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, tally, answered: first, ended, took } = self;
        let Tally { answers, abandoned, resets, queue_resets, accesses, interrupts } = tally;
        writeln!(
            f,
            "{kills} kills in {:.0} s: {answers} requests answered, {abandoned} taken back by {resets} resets and {queue_resets} \
             of one queue, {accesses} register accesses, {interrupts} interrupts; all as it should be",
            took.as_secs_f64(),
        )?;
        writeln!(f, "from a kill to the first answer of the next process: {first}")?;
        write!(f, "of that, until the kernel had ended the process: {ended}")
    }
}
