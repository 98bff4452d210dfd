//! `kills` kills workers; `kills worker` is one.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use kills::{Campaign, WORD, serve};
use virtio_disk::Format;

/// Kills a disk's process under verified load.
#[derive(Parser)]
struct Options {
    /// How often.
    #[arg(long, default_value_t = 10_000)]
    kills: u64,
    /// What chance decides follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the image is made.
    #[arg(long, default_value_os_t = env::temp_dir())]
    folder: PathBuf,
    /// It is a qcow2 image, and not a raw one.
    #[arg(long)]
    qcow2: bool,
}

fn main() -> Result<()> {
    // Thousands are started: no time for more than a look.
    if env::args_os().nth(1).is_some_and(|word| word == WORD) {
        return serve(env::args_os().nth(2).as_deref());
    }
    let Options { kills, seed, folder, qcow2 } = Options::parse();
    let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
    let program = env::current_exe().context("Cannot find this program")?;
    println!("seed {seed}");
    println!("{}", Campaign { program, folder, format, kills, seed, forgets: false }.run()?);
    Ok(())
}
