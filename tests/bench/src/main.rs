//! The command behind `make bench`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use xen_virtio_bench::{micro, peers, requests, scale, storms};

/// Measures what xen-virtio costs on this machine, prints it, and leaves it in target/bench.
#[derive(Debug, Parser)]
struct Cli {
    /// What to measure; everything if nothing is named.
    cases: Vec<Case>,
    /// Make this step only, so many times, and measure nothing: for runs under valgrind.
    #[arg(long, hide = true, requires = "times")]
    step: Option<micro::Step>,
    /// Make requests to so many disks of each guest, so many times, and measure nothing.
    #[arg(long, hide = true, requires_all = ["guests", "times"])]
    disks: Option<usize>,
    #[arg(long, hide = true)]
    guests: Option<usize>,
    /// How often.
    #[arg(long, hide = true)]
    times: Option<u64>,
    /// Serve a guest that does this, and play it, until standard input ends.
    #[arg(long, hide = true)]
    storm: Option<storms::Storm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Instructions and nanoseconds of single steps.
    Micro,
    /// Instructions of a request, from ring to ring.
    Requests,
    /// Our vhost-user daemon beside others.
    Peers,
    /// Many disks, and many guests.
    Scale,
    /// What a guest feels of a neighbour that storms.
    Storms,
}

fn main() -> Result<()> {
    let Cli { cases, step, disks, guests, times, storm } = Cli::parse();
    let cases = if cases.is_empty() { Case::value_variants().to_vec() } else { cases };
    let (programs, folder) = places()?;
    if let (Some(step), Some(times)) = (step, times) {
        return micro::make(step, times, &folder);
    }
    if let (Some(disks), Some(guests), Some(times)) = (disks, guests, times) {
        return scale::make(scale::Size { guests, disks }, times, &folder);
    }
    if let Some(storm) = storm {
        return storms::storm(storm, &folder);
    }
    for case in cases {
        match case {
            Case::Storms => {
                let report = storms::run(&programs.join("xen-virtio"), &folder)?;
                keep(&folder, "storms", &report, &report.tables())?;
            }
            Case::Scale => {
                let report = scale::run(&programs.join("xen-virtio"), &folder)?;
                keep(&folder, "scale", &report, &report.tables())?;
                report.draw(&figure("scale")?)?;
            }
            Case::Micro => {
                let costs = micro::run(&folder)?;
                keep(&folder, "micro", &costs, &micro::tables(&costs))?;
            }
            Case::Requests => {
                let counted = requests::run(&programs.join("xen-virtio"), &folder)?;
                keep(&folder, "requests", &counted, &requests::tables(&counted))?;
            }
            Case::Peers => {
                let report = peers::run(&programs.join("xen-virtio"), &folder, peers::Effort::FULL, |what| {
                    eprintln!("peers: {what}");
                })?;
                keep(&folder, "peers", &report, &report.tables())?;
                report.draw(&figure("peers")?)?;
            }
        }
    }
    Ok(())
}

/// Where the programs are, and where results belong.
fn places() -> Result<(PathBuf, PathBuf)> {
    let program = std::env::current_exe()?;
    let programs = program.parent().context("A program is in a directory")?;
    let folder = programs.parent().unwrap_or(programs).join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    Ok((programs.to_owned(), folder))
}

/// Where the documentation has a figure.
fn figure(name: &str) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    Ok(folder.join(format!("{name}.svg")))
}

fn keep(folder: &Path, name: &str, report: &impl serde::Serialize, tables: &str) -> Result<()> {
    println!("{tables}");
    fs::write(folder.join(format!("{name}.txt")), tables)?;
    let json = serde_json::to_string_pretty(report)?;
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, json).with_context(|| format!("Cannot write {}", path.display()))
}
