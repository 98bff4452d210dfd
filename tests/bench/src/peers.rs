//! Our vhost-user daemon beside others: same client, same image, one after the other in short rounds.
//!
//! The client has one processor and the servers another. Rounds of all servers follow each other, so that what else the
//! machine does meets all of them; ratios are of neighbours in the same round.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::frontend::{Session, Use};
use crate::guest::{BLOCK, Direction};
use crate::image::make_image;
use crate::load::{self, End, Tally};
use crate::plot::{self, Panel, Series};
use crate::process::{CallCounter, Memory, Used};
use crate::server::{Kind, Server};
use crate::spread::Spread;
use crate::table;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each workload.
    pub rounds: usize,
    /// Of each server in a round.
    pub time: Duration,
    /// Bytes of the image: a power of two.
    pub image: u64,
}

impl Effort {
    /// For figures to be published.
    pub const FULL: Self = Self { rounds: 7, time: Duration::from_millis(700), image: 256 << 20 };
}

/// A way to use a disk, and its name.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// In tables.
    pub name: &'static str,
    /// In figures.
    pub short: &'static str,
    /// What is done.
    pub how: Use,
}

const fn workload(
    name: &'static str,
    short: &'static str,
    direction: Direction,
    queues: usize,
    depth: u16,
) -> Workload {
    Workload { name, short, how: Use { queues, depth, direction, indirect: true } }
}

/// What is compared.
pub const WORKLOADS: [Workload; 7] = [
    workload("read, depth 1", "read 1", Direction::Read, 1, 1),
    workload("read, depth 32", "read 32", Direction::Read, 1, 32),
    Workload {
        name: "read, depth 32, no indirect",
        short: "read 32, no indirect",
        how: Use { queues: 1, depth: 32, direction: Direction::Read, indirect: false },
    },
    workload("read, depth 128", "read 128", Direction::Read, 1, 128),
    workload("read, 2 queues of 32", "read 2×32", Direction::Read, 2, 32),
    workload("write, depth 1", "write 1", Direction::Write, 1, 1),
    workload("write, depth 32", "write 32", Direction::Write, 1, 32),
];

/// One round of one server.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// I/Os a second.
    pub iops: f64,
    /// Processor time of the server per I/O, in microseconds.
    pub cpu_us: f64,
    /// Sleeps of the server's threads per I/O.
    pub sleeps: f64,
    /// Kicks per I/O.
    pub kicks: f64,
    /// Calls per I/O.
    pub calls: f64,
}

/// What a server did in a workload.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The workload's name.
    pub workload: &'static str,
    /// The same where there is little room.
    pub short: &'static str,
    /// Requests in flight in each queue.
    pub depth: u16,
    /// The server's name.
    pub server: &'static str,
    /// I/Os a second.
    pub iops: Spread,
    /// Processor time of the server per I/O, in microseconds.
    pub cpu_us: Spread,
    /// System calls of the server per I/O, counted in a round of its own; none where the kernel does not count them.
    pub system_calls: Option<f64>,
    /// Sleeps of the server's threads per I/O.
    pub sleeps: f64,
    /// Kicks per I/O.
    pub kicks: f64,
    /// Calls per I/O.
    pub calls: f64,
    /// Ours by this one's: I/Os a second.
    pub iops_ratio: Spread,
    /// Ours by this one's: I/Os in a second of the server's processor time.
    pub cpu_ratio: Spread,
}

/// What a server came to in all.
#[derive(Clone, Debug, Serialize)]
pub struct Footprint {
    /// The server's name.
    pub server: &'static str,
    /// After all workloads.
    pub memory: Memory,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// By workload, and by server within.
    pub outcomes: Vec<Outcome>,
    /// By server.
    pub footprints: Vec<Footprint>,
}

/// Measures.
///
/// # Errors
/// A server or the client fails.
pub fn run(ours: &Path, folder: &Path, effort: Effort, say: impl Fn(&str)) -> Result<Report> {
    let image = make_image(folder, "peers", effort.image)?;
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        match Server::start(kind, &[], ours, &image, folder)? {
            Some(server) => servers.push(server),
            None => say(&format!("{} is not installed, and left out", kind.name())),
        }
    }
    let mut outcomes = Vec::new();
    for workload in WORKLOADS {
        say(workload.name);
        outcomes.extend(compare(&servers, workload, effort)?);
    }
    let mut footprints = Vec::new();
    for server in servers {
        footprints.push(Footprint { server: server.kind().name(), memory: Memory::of(server.pid())? });
        server.stop()?;
    }
    fs::remove_file(image)?;
    Ok(Report { outcomes, footprints })
}

fn compare(servers: &[Server], workload: Workload, effort: Effort) -> Result<Vec<Outcome>> {
    let blocks = effort.image / BLOCK as u64;
    let mut rounds: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
    let mut system_calls = Vec::new();
    for server in servers {
        system_calls.push(count_calls(server, workload, blocks, effort)?);
    }
    for _ in 0..effort.rounds {
        for (server, rounds) in servers.iter().zip(&mut rounds) {
            rounds.push(measure(server, workload, blocks, effort)?);
        }
    }
    let ours = rounds.first().cloned().unwrap_or_default();
    let outcome = |((server, rounds), system_calls): ((&Server, &Vec<Round>), Option<f64>)| {
        let spread = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
        let ratio = |figure: fn(&Round, &Round) -> f64| {
            Spread::of(ours.iter().zip(rounds).map(|(ours, theirs)| figure(ours, theirs)))
        };
        Outcome {
            workload: workload.name,
            short: workload.short,
            depth: workload.how.depth,
            server: server.kind().name(),
            iops: spread(|round| round.iops),
            cpu_us: spread(|round| round.cpu_us),
            system_calls,
            sleeps: spread(|round| round.sleeps).median,
            kicks: spread(|round| round.kicks).median,
            calls: spread(|round| round.calls).median,
            iops_ratio: ratio(|ours, theirs| ours.iops / theirs.iops),
            cpu_ratio: ratio(|ours, theirs| theirs.cpu_us / ours.cpu_us),
        }
    };
    Ok(servers.iter().zip(&rounds).zip(system_calls).map(outcome).collect())
}

fn measure(server: &Server, workload: Workload, blocks: u64, effort: Effort) -> Result<Round> {
    let (used, tally) = with_load(server, workload, blocks, effort.time, |load| {
        let before = Used::by(server.pid())?;
        let tally = load()?;
        Ok((Used::by(server.pid())?.since(before), tally))
    })?;
    let per_request = |count: u64| count as f64 / tally.requests as f64;
    Ok(Round {
        iops: tally.requests as f64 / tally.seconds,
        cpu_us: per_request(used.cpu_ns) / 1000.0,
        sleeps: per_request(used.sleeps),
        kicks: per_request(tally.kicks),
        calls: per_request(tally.calls),
    })
}

fn count_calls(server: &Server, workload: Workload, blocks: u64, effort: Effort) -> Result<Option<f64>> {
    with_load(server, workload, blocks, effort.time, |load| {
        let counter = CallCounter::start(server.pid())?;
        let tally = load()?;
        Ok(counter.stop()?.map(|calls| calls as f64 / tally.requests as f64))
    })
}

/// Has `measured` call what loads a server for a while; before that the same was done for a fraction of the time.
fn with_load<T>(
    server: &Server,
    Workload { name, how, .. }: Workload,
    blocks: u64,
    time: Duration,
    measured: impl FnOnce(&mut dyn FnMut() -> Result<Tally>) -> Result<T>,
) -> Result<T> {
    let failed = || format!("{} fails at: {name}", server.kind().name());
    let (session, mut lines) = Session::start(server.socket(), how).with_context(failed)?;
    load::run(&mut lines, how.depth, blocks, End::In(time / 8)).with_context(failed)?;
    let figures = measured(&mut || load::run(&mut lines, how.depth, blocks, End::In(time)).with_context(failed))?;
    session.stop().with_context(failed)?;
    Ok(figures)
}

impl Report {
    /// As a figure: bars of I/Os a second, and of the server's processor time for one. Where one request is in flight at a
    /// time, the kernel's part is so large that nothing could be told from bars.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn draw(&self, to: &Path) -> Result<()> {
        let panel = |title, unit, figure: fn(&Outcome) -> Spread| {
            let of = |server: &'static str| {
                self.outcomes.iter().filter(move |outcome| outcome.server == server && outcome.depth > 1)
            };
            let series = |footprint: &Footprint| Series {
                name: footprint.server.to_owned(),
                figures: of(footprint.server).map(figure).collect(),
            };
            let groups = of(Kind::Ours.name()).map(|outcome| outcome.short.to_owned()).collect();
            Panel { title, unit, groups, series: self.footprints.iter().map(series).collect() }
        };
        plot::bars(
            to,
            &[
                panel("I/Os of 4 KiB a second, by requests in flight", "thousands a second", |outcome| {
                    outcome.iops.scaled(0.001)
                }),
                panel("Processor time of an I/O", "microseconds", |outcome| outcome.cpu_us),
            ],
        )
    }

    /// As tables.
    pub fn tables(&self) -> String {
        let row = |outcome: &Outcome| {
            let Outcome { workload, server, iops, cpu_us, system_calls, sleeps, kicks, calls, .. } = outcome;
            let is_ours = *server == Kind::Ours.name();
            let ratio = |ratio: &Spread| match is_ours {
                true => "-".to_owned(),
                false => format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max),
            };
            vec![
                if is_ours { (*workload).to_owned() } else { String::new() },
                (*server).to_owned(),
                format!("{:.0}", iops.median),
                format!("{:.2}", cpu_us.median),
                system_calls.map_or("-".to_owned(), |calls| format!("{calls:.3}")),
                format!("{sleeps:.3}"),
                format!("{kicks:.3}"),
                format!("{calls:.3}"),
                ratio(&outcome.iops_ratio),
                ratio(&outcome.cpu_ratio),
            ]
        };
        let rows: Vec<_> = self.outcomes.iter().map(row).collect();
        let header = [
            "4 KiB, per I/O",
            "server",
            "IOPS",
            "CPU µs",
            "syscalls",
            "sleeps",
            "kicks",
            "calls",
            "ours: IOPS",
            "ours: I/Os per CPU s",
        ];
        let memory = |Footprint { server, memory }: &Footprint| {
            let kib = [memory.peak_kib, memory.anonymous_kib, memory.proportional_kib];
            std::iter::once((*server).to_owned()).chain(kib.map(|kib| kib.to_string())).collect()
        };
        let footprints: Vec<_> = self.footprints.iter().map(memory).collect();
        let memory = table::render(&["memory, KiB", "peak", "anonymous", "proportional"], &footprints);
        format!("{}\n{memory}", table::render(&header, &rows))
    }
}
