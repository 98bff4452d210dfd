//! `xen-virtio`: see `xen-virtio --help`.

use std::process::ExitCode;

use xen_virtio::cli::{Cli, Command};
use xen_virtio::{check, console, list, operate, serve, upgrade, versions, vhost_user, worker};

fn main() -> ExitCode {
    let ended = match Cli::of_this_process().command {
        Command::Serve(options) => serve::run(&options),
        Command::List(options) => list::run(&options.runtime.directory, options.json),
        Command::Wait(options) => operate::wait(&options),
        Command::Link(options) => operate::link(&options),
        Command::Resize(options) => operate::resize(&options),
        Command::Resume(options) => operate::resume(&options),
        Command::Upgrade(options) => upgrade::run(&options),
        Command::Console(options) => console::run(&options),
        Command::Check(options) => check::run(&options),
        Command::VhostUser(options) => vhost_user::run(&options),
        Command::Worker(options) => worker::run(&options),
        Command::Follows(options) => versions::follows(&options.command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
