//! `xen-virtio check`: what a guest would get of its xl configuration, and what is wrong, before it is created.
//!
//! Reads what xl would read and what `serve` would read, and asks neither: it runs anywhere, for files of any guest.
//! Parts: `xlcfg` reads xl's language, `disk` and `virtio` the entries that concern us, `addresses` does what
//! libxl does with them, [`Choice`](crate::choice::Choice) adds the guest's TOML file, and `plan` puts it all together.

mod addresses;
mod disk;
mod image;
mod lexer;
mod mistake;
mod plan;
mod report;
mod server;
mod virtio;
mod xlcfg;

use std::io::{self, Write};

use anyhow::anyhow;

use crate::cli;
use crate::config::{GuestConfig, GuestName};
use crate::failure::Failure;
use mistake::{Mistake, printable};
use plan::{Plan, guest_name, plan};
use xlcfg::XlConfig;

/// Prints what the guest would get, and on standard error what is wrong, line by line.
///
/// # Errors
/// Something is wrong.
pub fn run(options: &cli::Check) -> Result<(), Failure> {
    let (report, mistakes) = look(options);
    // A reader that closes early, such as `head`, has seen what it wanted.
    let _ = io::stdout().write_all(report.as_bytes());
    for mistake in &mistakes {
        eprintln!("{mistake}");
    }
    match mistakes.len() {
        0 => Ok(()),
        1 => Err(Failure::Environment(anyhow!("There is a mistake; the guest would not get what is meant"))),
        several => {
            Err(Failure::Environment(anyhow!("There are {several} mistakes; the guest would not get what is meant")))
        }
    }
}

/// What the guest would get, in words, and what is wrong, a line each.
pub fn look(options: &cli::Check) -> (String, Vec<String>) {
    let (guest, plan) = examine(options);
    (report::report(&guest, &plan), plan.mistakes.iter().map(ToString::to_string).collect())
}

/// The guest, as people call it, and what it would get.
fn examine(options: &cli::Check) -> (String, Plan) {
    let nobody = || printable(&options.configuration.display().to_string());
    let xl = match XlConfig::read(&options.configuration) {
        Ok(xl) => xl,
        Err(mistake) => return (nobody(), Plan { mistakes: vec![mistake], ..Plan::default() }),
    };
    let mut mistakes = Vec::new();
    let name = guest_name(&xl).unwrap_or_else(|mistake| {
        mistakes.push(mistake);
        GuestName::default()
    });
    let guest = name.name.as_deref().map_or_else(nobody, printable);
    let read = match &options.options {
        Some(file) => GuestConfig::read(file),
        None => GuestConfig::load(&options.guests, &name),
    };
    let config = read.unwrap_or_else(|error| {
        mistakes.push(Mistake::of(error));
        GuestConfig::default()
    });
    let mut plan = plan(&xl, &config);
    mistakes.append(&mut plan.mistakes);
    (guest, Plan { mistakes, ..plan })
}
