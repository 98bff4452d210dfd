//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::broker::DEATHS_PER_MINUTE;
use crate::config;
use crate::confine::{UID_BASE, UID_BASE_MAX, UID_MAX};
use crate::model::Model;

/// Serves virtio devices to Xen guests.
///
/// A guest whose xl configuration says `disk=["format=raw,vdev=xvda,access=rw,backendtype=standalone,
/// specification=virtio,target=/path/to/image"]` finds its disk behind virtio-mmio registers that this program answers, and
/// so with `virtio=["type=virtio,device1,transport=mmio"]` for a network card and other devices (Xen 4.18 and later).
/// Needs Xen with IOREQ servers (CONFIG_IOREQ_SERVER=y) and root in Dom0; `vhost-user` needs neither.
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
    /// Wait until all devices of a guest are there
    ///
    /// For a guest that must not be faster than its devices: `xl create -p`, then this, then `xl unpause`. Exit code: 0
    /// they are there, 1 one of them failed or they are not there in time.
    Wait(Wait),
    /// Plug a guest's network cable in, or pull it out
    Link(Link),
    /// Let a guest know that its disk's image, or the volume behind it, has another size
    ///
    /// Make the image larger first, with `truncate` or `lvextend`; then this. The guest's kernel sees the new size at once,
    /// and its file systems grow when it is told so. Exit code: 0 the guest's disk is as large as its image, 1 it cannot be.
    Resize(Resize),
    /// Try again what a disk holds since its host failed it (`on_error = "hold"`)
    ///
    /// `xen-virtio list` shows how many requests wait, and for how long. What fails again is held again. Exit code: 0 they
    /// are tried, 1 there are none.
    Resume(Resume),
    /// Put another version in the place of the one that runs; guests go on
    ///
    /// Asks the `serve` that runs to become another program, which takes all guests over and starts their workers anew: I/O
    /// takes a moment longer. A program that cannot go on with what the running one would leave is refused before anything is
    /// touched. Exit code: 0 everything is served by the new program, 1 it is refused, or not everything goes on.
    Upgrade(Upgrade),
    /// Sit at a guest's console, or at another of its ports; leave with Ctrl-]
    ///
    /// Where standard input is no terminal it is sent until it ends, and what comes is printed until nothing has come for
    /// a second. Exit code: 0 left, or the guest has ended; 1 there is no such port, or somebody else has it.
    Console(Console),
    /// Say what a guest will get of its xl configuration, and what is wrong with it
    ///
    /// Reads the files that xl and `serve` would read, and asks neither, so it works without Xen and for guests that do not
    /// run. Exit code: 0 all is well, 1 something is wrong, 2 it was called wrongly.
    Check(Check),
    /// Serve one device on a vhost-user socket, to QEMU or any other VMM, without Xen
    ///
    /// Serves one front-end after the other, until it is stopped by SIGTERM or SIGINT; then it takes away what it made: the
    /// socket, and whatever the device has on the host. On SIGUSR1 a disk looks how large its image is now, and tries again
    /// what it holds since the host failed it. Needs no more rights than the device's end on the host does. Exit code: 0
    /// stopped, 1 the device or the socket cannot be opened, 2 it was called wrongly, or something serves on that socket
    /// already.
    ///
    /// Who may connect is who may write to the socket's name. A socket that is made here gets its permissions from the
    /// umask: under 022 it is for this user and root, under 007 for its group as well. One of systemd's has what its unit
    /// says (SocketUser=, SocketGroup=, SocketMode=).
    VhostUser(VhostUser),
    /// Serve one guest; started by `serve`, with a socket as standard input
    #[command(hide = true)]
    Worker(Worker),
    /// Say which versions' guests can be gone on with; asked by the `serve` whose place it is to take
    #[command(hide = true)]
    Follows(Follows),
}

/// Options of `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// Directory of the guests' configuration files, NAME.toml or UUID.toml
    #[arg(long, value_name = "DIR", default_value = config::DIRECTORY)]
    pub guests: PathBuf,
    /// Serve the guests of this file, and ask no toolstack: for dom0less systems, and others without libxl
    #[arg(long = "static", value_name = "FILE", conflicts_with = "guests")]
    pub static_file: Option<PathBuf>,
    /// Serve this kind of device only, and leave others to other programs
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub only: Option<String>,
    /// How often within a minute the process that serves a guest may die and be followed by another
    ///
    /// If it dies more often, the guest's devices are given up: the guest runs on and finds them broken.
    #[arg(long = "restarts", value_name = "N", default_value_t = DEATHS_PER_MINUTE)]
    pub restarts: u32,
    /// The user ids of workers: that of domain 5 runs as user N + 5
    ///
    /// They are to be nobody else's. The default is where no distribution, container manager or directory service gives
    /// any out.
    #[arg(long, value_name = "N", default_value_t = UID_BASE, conflicts_with = "no_sandbox",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(UID_BASE_MAX)))]
    pub worker_uid_base: u32,
    /// For debugging: leave workers the rights of root. A guest that takes its worker over then has the host
    #[arg(long)]
    pub no_sandbox: bool,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
    /// What to log: error, warn, info, debug or trace, or filters such as info,xen_virtio=debug
    #[arg(long, value_name = "FILTER", env = LOG_VARIABLE, default_value = "info")]
    pub log: String,
}

impl Serve {
    /// Where the user ids of workers begin; none if they are not confined.
    pub fn uid_base(&self) -> Option<u32> {
        (!self.no_sandbox).then_some(self.worker_uid_base)
    }
}

/// Options of `worker`.
#[derive(Args, Debug)]
pub struct Worker {
    /// The user to become when all rights are given up
    #[arg(long, value_name = "UID",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(UID_MAX)))]
    pub user: Option<u32>,
    /// Keep all rights
    #[arg(long, conflicts_with = "user")]
    pub no_sandbox: bool,
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

/// Options of `wait`.
#[derive(Args, Debug)]
pub struct Wait {
    /// The guest's name or domain id
    pub guest: String,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub timeout: u64,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
}

/// Options of `link`.
#[derive(Args, Debug)]
pub struct Link {
    /// The guest's name or domain id
    pub guest: String,
    /// The device, as `xen-virtio list` calls it: net0
    pub device: String,
    /// Plugged in or not
    pub cable: Cable,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
}

/// Options of `resize`.
#[derive(Args, Debug)]
pub struct Resize {
    /// The guest's name or domain id
    pub guest: String,
    /// The device, as `xen-virtio list` calls it: xvda, disk0
    pub device: String,
    /// Also if it is smaller now: the guest loses what lies beyond the end
    #[arg(long)]
    pub shrink: bool,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
}

/// Options of `resume`.
#[derive(Args, Debug)]
pub struct Resume {
    /// The guest's name or domain id
    pub guest: String,
    /// The device, as `xen-virtio list` calls it: xvda, disk0
    pub device: String,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
}

/// Options of `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// The guest's xl configuration
    #[arg(value_name = "XL.CFG")]
    pub configuration: PathBuf,
    /// The guest's TOML file; if left out, that which `serve` would find
    #[arg(value_name = "GUEST.TOML")]
    pub options: Option<PathBuf>,
    /// Directory of the guests' configuration files, NAME.toml or UUID.toml
    #[arg(long, value_name = "DIR", default_value = config::DIRECTORY, conflicts_with = "options")]
    pub guests: PathBuf,
}

/// Options of `vhost-user`.
#[derive(Args, Debug)]
pub struct VhostUser {
    /// The kind of device; under the name virtio-KIND the program has it from there
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub kind: String,
    /// Listen on this socket, which is made. One that was left behind is replaced
    #[arg(long, visible_alias = "socket-path", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Listen on the unix socket that is open as descriptor N, on which somebody else has called listen(2)
    ///
    /// With neither of the two it is the one socket of systemd's socket activation.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    pub fd: Option<RawFd>,
    /// What the device is called: in the log, and for what is named after a guest elsewhere
    ///
    /// The same name gives a network card the same address at each start. Default: the socket's file name, without its
    /// extension.
    #[arg(long)]
    pub name: Option<String>,
    /// Directory for the sockets and links of the device that programs on the host use. Default: that of the socket
    #[arg(long = "run", value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Print what kind of device it is, as the vhost-user specification wants it, and end
    #[arg(long)]
    pub print_capabilities: bool,
    /// What to log: error, warn, info, debug or trace, or filters such as info,virtio_disk=debug
    #[arg(long, value_name = "FILTER", env = LOG_VARIABLE, default_value = "info")]
    pub log: String,
    /// What the device is to be, by the keys of its entry in a guest's file: image=/srv/web.img queues=2
    ///
    /// VALUE is TOML, or plain text if it is not. Text that looks like something else is written in two pairs of quotes:
    /// serial='"0042"'.
    #[arg(value_name = "KEY=VALUE")]
    pub keys: Vec<String>,
}

/// Options of `upgrade`.
#[derive(Args, Debug)]
pub struct Upgrade {
    /// The program that is to run. Default: the one that was called
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    #[command(flatten)]
    /// Where the broker lives.
    pub runtime: Runtime,
}

/// Options of `follows`.
#[derive(Args, Debug)]
pub struct Follows {
    /// How it would be started, beginning with its name
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

/// A network cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cable {
    /// Plugged in.
    Up,
    /// Pulled out.
    Down,
}

/// Options of `console`.
#[derive(Args, Debug)]
pub struct Console {
    /// The guest's name or domain id
    pub guest: String,
    /// The port's number or name; those of a second console are called 1.0 and 1.NAME
    #[arg(default_value = "0")]
    pub port: String,
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

fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(Model::kinds_with_id().map(|(name, _)| name))
}

impl Cli {
    /// Reads the command line. Under the name of a kind, `virtio-net` say, the program serves that kind only, and lives in
    /// a place of its own.
    pub fn of_this_process() -> Self {
        Self::parse_from(with_kind(std::env::args_os().collect()))
    }

    /// Reads another command line, in the same way.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn parse_line(arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(with_kind(arguments))
    }
}

/// Puts in what the program's name says.
fn with_kind(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    let kind = name.and_then(|name| name.strip_prefix("virtio-")).map(str::to_owned);
    let is_kind = |kind: &String| Model::kinds_with_id().any(|(name, _)| name == kind);
    let Some(kind) = kind.filter(is_kind) else { return arguments };
    let Some(command) = arguments.get(1).cloned().filter(|command| !command.to_string_lossy().starts_with('-')) else {
        return arguments;
    };
    let own_place = format!("--run=/run/virtio-{kind}");
    let has_place = arguments.iter().any(|argument| argument.to_string_lossy().starts_with("--run"));
    if !has_place && !["worker", "help", "check", "vhost-user"].iter().any(|placeless| command == *placeless) {
        arguments.push(own_place.into());
    }
    if command == "serve" {
        arguments.push(format!("--only={kind}").into());
    }
    if command == "vhost-user" {
        // Before what the operator wrote: behind `--` it would be a key.
        arguments.insert(2, format!("--kind={kind}").into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Command {
        Cli::try_parse_from(with_kind(line.split(' ').map(OsString::from).collect())).unwrap().command
    }

    #[test]
    fn under_the_name_of_a_kind_that_kind_alone_is_served() {
        let Command::Serve(serve) = parse("/usr/sbin/virtio-net serve --log debug") else { panic!("serve") };
        assert_eq!((serve.only.as_deref(), serve.runtime.directory), (Some("net"), PathBuf::from("/run/virtio-net")));

        let Command::List(list) = parse("virtio-console list --run /tmp/x") else { panic!("list") };
        assert_eq!(list.runtime.directory, PathBuf::from("/tmp/x"));

        assert!(matches!(parse("virtio-net check web.cfg"), Command::Check(_)));

        let Command::VhostUser(options) = parse("virtio-disk vhost-user --socket-path /s -- image=/x") else {
            panic!("it")
        };
        assert_eq!((options.kind.as_str(), options.keys, options.directory), ("disk", vec!["image=/x".into()], None));

        let Command::Serve(serve) = parse("xen-virtio serve") else { panic!("serve") };
        assert_eq!((serve.only, serve.runtime.directory), (None, PathBuf::from("/run/xen-virtio")));
    }
}
