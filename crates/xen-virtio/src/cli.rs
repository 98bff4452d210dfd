//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config;

/// Serves virtio devices to Xen guests.
///
/// A guest whose xl configuration says `disk=["format=raw,vdev=xvda,access=rw,backendtype=standalone,
/// specification=virtio,target=/path/to/image"]` finds its disk behind virtio-mmio registers that this program answers.
/// Needs Xen with IOREQ servers (CONFIG_IOREQ_SERVER=y) and root in Dom0.
#[derive(Debug, Parser)]
#[command(name = "xen-virtio", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the devices of all guests, until stopped
    ///
    /// Stops on SIGTERM or SIGINT. Guests that run then keep their devices: each is served by a process of its own that
    /// ends with it. A guest that is created needs `serve` to run, and one that is destroyed while it does not makes
    /// `xl destroy` wait ten seconds. Exit code: 0 stopped, 1 the machine is not ready for it, 2 it was called wrongly
    /// or runs already.
    Serve(Serve),
    /// Show guests, their devices, and what is counted for them
    List(List),
    /// Serve one guest; started by `serve`, with a socket as standard input
    #[command(hide = true)]
    Worker,
}

/// Options of `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// Directory of the guests' configuration files, NAME.toml or UUID.toml
    #[arg(long, value_name = "DIR", default_value = config::DIRECTORY)]
    pub guests: PathBuf,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
    /// What to log: error, warn, info, debug or trace, or filters such as info,xen_virtio=debug
    #[arg(long, value_name = "FILTER", env = LOG_VARIABLE, default_value = "info")]
    pub log: String,
}

/// The variable that tells a worker what to log.
pub const LOG_VARIABLE: &str = "XEN_VIRTIO_LOG";

/// Options of `list`.
#[derive(Args, Debug)]
pub struct List {
    /// Print JSON, for other programs to read
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
}

/// Where the broker lives.
#[derive(Args, Debug)]
pub struct Runtime {
    /// Directory of the running program's lock and control socket
    #[arg(long = "run", value_name = "DIR", default_value = "/run/xen-virtio")]
    pub directory: PathBuf,
}
