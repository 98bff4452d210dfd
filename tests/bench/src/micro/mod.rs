//! What single steps cost, in instructions and in nanoseconds.
//!
//! Each is done in this process, on the code that a worker runs. Instructions are of user space; nanoseconds are of the
//! whole, and of a machine that may do other things, too.

mod access;
mod mapping;
mod queue;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::callgrind::{self, Count};
use crate::spread::Spread;
use crate::table;

/// Times that a step is made between two looks at the clock.
const BATCH: u32 = 64;

/// Batches that are timed, after half as many that are not.
const TIMED: u32 = 300;

/// Times that a step is made to count its instructions, and once more as many.
const COUNTED: u64 = 64 * 64;

/// Functions that a table shows of each step.
const SHOWN: usize = 8;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// A driver reads InterruptStatus.
    ReadRegister,
    /// A driver writes InterruptACK.
    WriteRegister,
    /// A driver notifies a queue that runs.
    NotifyQueue,
    /// A page is pinned that the lane has used just now.
    MapHit,
    /// A page is pinned that has to be mapped, and something else unmapped for it.
    MapMiss,
    /// A request is taken from a ring and given back.
    PopPush,
    /// A request that the disk answers by itself (GET_ID) is taken, understood, answered and given back.
    Answer,
    /// A request for 4 KiB is taken, understood, read by io_uring, and given back.
    Read,
}

/// What makes a step again and again.
trait Steps {
    /// Has all there for the next [`BATCH`] of them.
    fn prepare(&mut self) {}

    /// Makes [`BATCH`] of them.
    fn make(&mut self);
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::ReadRegister => "register read (InterruptStatus)",
            Self::WriteRegister => "register write (InterruptACK)",
            Self::NotifyQueue => "register write (QueueNotify, with its kick)",
            Self::MapHit => "map cache: pin a page, hit",
            Self::MapMiss => "map cache: pin a page, miss",
            Self::PopPush => "ring: pop and push of 4 KiB",
            Self::Answer => "disk: pop, parse, answer GET_ID, push",
            Self::Read => "disk: pop, parse, read 4 KiB by io_uring, push",
        }
    }

    fn steps(self, folder: &Path) -> Result<Box<dyn Steps>> {
        Ok(match self {
            Self::ReadRegister => Box::new(access::Accesses::new(access::Access::Read)?),
            Self::WriteRegister => Box::new(access::Accesses::new(access::Access::Write)?),
            Self::NotifyQueue => Box::new(access::Accesses::new(access::Access::Notify)?),
            Self::MapHit => Box::new(mapping::Pins::that_hit()?),
            Self::MapMiss => Box::new(mapping::Pins::that_miss()?),
            Self::PopPush => Box::new(queue::PopPush::new()?),
            Self::Answer => Box::new(queue::Disk::new(queue::Request::GetId, folder)?),
            Self::Read => Box::new(queue::Disk::new(queue::Request::Read, folder)?),
        })
    }

    /// The pump works on a thread of its own, with a script in the place of Xen: that thread is counted, the script is
    /// not. Else what [`counted`] calls is.
    fn count(self) -> Count<'static> {
        match self {
            Self::ReadRegister | Self::WriteRegister | Self::NotifyQueue => Count {
                options: &["--separate-threads=yes"],
                thread: Some(access::SCRIPT),
                leaves_out: Some("micro::access::Script"),
            },
            _ => Count {
                options: &["--collect-atstart=no", "--toggle-collect=xen_virtio_bench::micro::counted"],
                thread: None,
                leaves_out: None,
            },
        }
    }
}

/// What a step costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// What it is.
    pub name: &'static str,
    /// Instructions of user space.
    pub instructions: f64,
    /// By function, what it calls not included, the largest first.
    pub functions: Vec<(String, f64)>,
    /// Nanoseconds.
    pub nanoseconds: Spread,
}

/// Counts and times all steps.
///
/// # Errors
/// There is no valgrind, or a step cannot be set up.
pub fn run(folder: &Path) -> Result<Vec<Cost>> {
    let measure = |step: &Step| {
        let nanoseconds = time(*step, folder)?;
        let word = step.to_possible_value().context("Each step has a name")?.get_name().to_owned();
        let cost = callgrind::cost(&format!("micro-{word}"), COUNTED, folder, step.count(), |wrapper, times| {
            callgrind::run_this(wrapper, &["--step", &word, "--times", &times.to_string()])
        })?;
        let callgrind::Cost { instructions, functions } = cost;
        Ok(Cost { name: step.name(), instructions, functions, nanoseconds })
    };
    Step::value_variants().iter().map(measure).collect()
}

/// Makes a step so many times, and nothing else: what a run of this program under valgrind is for.
///
/// # Errors
/// The step cannot be set up.
pub fn make(step: Step, times: u64, folder: &Path) -> Result<()> {
    let mut steps = step.steps(folder)?;
    for _ in 0..times / u64::from(BATCH) {
        steps.prepare();
        counted(steps.as_mut());
    }
    Ok(())
}

fn time(step: Step, folder: &Path) -> Result<Spread> {
    let mut steps = step.steps(folder)?;
    let mut batch = || {
        steps.prepare();
        counted(steps.as_mut()).as_nanos() as f64 / f64::from(BATCH)
    };
    for _ in 0..TIMED / 2 {
        batch();
    }
    Ok(Spread::of((0..TIMED).map(|_| batch())))
}

/// Makes a batch, by the clock. callgrind knows it by its name.
#[inline(never)]
fn counted(steps: &mut dyn Steps) -> Duration {
    let started = Instant::now();
    steps.make();
    started.elapsed()
}

/// As tables.
pub fn tables(costs: &[Cost]) -> String {
    let row = |Cost { name, instructions, nanoseconds: Spread { median, min, .. }, .. }: &Cost| {
        vec![(*name).to_owned(), format!("{instructions:.0}"), format!("{median:.0}"), format!("{min:.0}")]
    };
    let header = ["step", "instructions", "ns", "least ns"];
    let mut text = table::render(&header, &costs.iter().map(row).collect::<Vec<_>>());
    for Cost { name, functions, .. } in costs {
        let rows: Vec<_> =
            functions.iter().take(SHOWN).map(|(name, cost)| vec![format!("{cost:6.1}  {name}")]).collect();
        text.push('\n');
        text.push_str(&table::render(&[name], &rows));
    }
    text
}
