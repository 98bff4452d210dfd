//! `xen-virtio`: see `xen-virtio --help`.

use std::process::ExitCode;

use clap::Parser;
use xen_virtio::cli::{Cli, Command};
use xen_virtio::{list, serve, worker};

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Serve(options) => serve::run(&options),
        Command::List(options) => list::run(&options.runtime.directory, options.json),
        Command::Worker => worker::run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
