//! `power-cut record` serves a disk to a guest and keeps a log; `power-cut replay` cuts its power.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use power_cut::campaign::{Campaign, Report};
use power_cut::log::{self, Log};
use power_cut::{Lie, Recorder};
use vhost_user::Server;
use virtio_disk::{Cache, Config, Disk, Image};

/// Cuts a disk's power, thousands of times.
#[derive(Parser)]
enum Command {
    /// Serves a disk on a vhost-user socket and logs what reaches the host, until it is killed.
    Record(Record),
    /// Plays a log back up to a power cut, thousands of times, and checks what is found. Exit code 2: it is wrong.
    Replay(Replay),
}

#[derive(Parser)]
struct Record {
    /// The socket to make.
    #[arg(long)]
    socket: PathBuf,
    /// The disk's image, all zeroes.
    #[arg(long)]
    image: PathBuf,
    /// What to append to; disks that share it are in one order.
    #[arg(long)]
    log: PathBuf,
    /// The disk's number in the log; 0 is the one by which the guest speaks.
    #[arg(long)]
    disk: u8,
    /// When a write counts as done.
    #[arg(long, default_value = "writeback")]
    cache: CacheMode,
    /// Queues, each worked by a thread of its own.
    #[arg(long, default_value_t = 2)]
    queues: u16,
}

#[derive(Clone, Copy, ValueEnum)]
enum CacheMode {
    Writeback,
    Writethrough,
}

#[derive(Parser)]
struct Replay {
    /// The log.
    #[arg(long)]
    log: PathBuf,
    /// The disk's number in the log.
    #[arg(long)]
    disk: u8,
    /// How many different states at least.
    #[arg(long, default_value_t = 5000)]
    states: usize,
    /// What chance decides follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// As if the device had lied like this; stops when that is found out.
    #[arg(long)]
    lie: Option<Lie>,
    /// Where to put states that are wrong.
    #[arg(long, default_value = "target/power-cut")]
    folder: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Record(options) => record(&options),
        Command::Replay(options) => replay(options),
    }
}

fn record(options: &Record) -> anyhow::Result<ExitCode> {
    let cache = match options.cache {
        CacheMode::Writeback => Cache::Writeback,
        CacheMode::Writethrough => Cache::Writethrough,
    };
    let config = Config { image: options.image.clone(), cache, queues: Some(options.queues), ..Config::default() };
    let image = Image::open(&config.image, config.access())?;
    let log = Log::append(&options.log, options.disk)
        .with_context(|| format!("Cannot write the log {}", options.log.display()))?;
    let disk = Disk::new(&config, Recorder::new(image, log)?)?;
    let listener = UnixListener::bind(&options.socket)
        .with_context(|| format!("Cannot listen on {}", options.socket.display()))?;
    Server::new("power-cut", Arc::new(disk), listener)?.serve()?;
    Ok(ExitCode::SUCCESS)
}

fn replay(options: Replay) -> anyhow::Result<ExitCode> {
    let Replay { log, disk, states, seed, lie, folder } = options;
    let events = log::read(&log, disk)?;
    let Report { states, boundaries, promises, violations } =
        Campaign { disk, states, seed, lie, first_only: lie.is_some(), folder }.run(&events)?;
    println!(
        "disk {disk}: {states} states, around {boundaries} points of durability, with {promises} promises: {} wrong",
        violations.len()
    );
    for violation in violations.iter().take(5) {
        println!("  {violation}");
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
