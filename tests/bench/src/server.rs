//! The programs that are compared: each serves the same image on a vhost-user socket.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Place, pin};
use crate::wait;

/// Queues that each is told to have.
pub const QUEUES: usize = 2;

/// A program that serves disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `virtio-disk vhost-user`.
    Ours,
    /// QEMU's storage daemon, as its manual has it.
    StorageDaemon,
    /// The same with an I/O thread of its own for the export, which polls for a while before it sleeps.
    StorageDaemonThread,
}

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Self; 3] = [Self::Ours, Self::StorageDaemon, Self::StorageDaemonThread];

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "virtio-disk",
            Self::StorageDaemon => "qemu-storage-daemon",
            Self::StorageDaemonThread => "same, iothread",
        }
    }

    fn command(self, program: &Path, image: &Path, socket: &Path) -> Command {
        let (image, socket) = (image.display(), socket.display());
        let mut command = Command::new(program);
        if self == Self::Ours {
            command.args(["vhost-user", "--kind=disk", "--log=warn"]);
            command.arg(format!("--socket={socket}")).arg(format!("image={image}")).arg(format!("queues={QUEUES}"));
            return command;
        }
        let mut export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={QUEUES},\
             addr.type=unix,addr.path={socket}"
        );
        if self == Self::StorageDaemonThread {
            command.args(["--object", "iothread,id=thread"]);
            export.push_str(",iothread=thread");
        }
        // Ours has the image locked.
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={image},aio=io_uring,cache.direct=off,locking=off"));
        command.arg("--export").arg(export);
        command
    }
}

/// One that runs.
pub struct Server {
    kind: Kind,
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts one, on the processor for servers, and waits until it listens. `wrapper` is a command that is to run it:
    /// the words before its own. `None` if it is not installed.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(kind: Kind, wrapper: &[String], ours: &Path, image: &Path, folder: &Path) -> Result<Option<Self>> {
        let program = if kind == Kind::Ours { ours.to_owned() } else { PathBuf::from("qemu-storage-daemon") };
        let socket = folder.join(format!("{kind:?}.sock"));
        // Of a run that was killed.
        let _ = fs::remove_file(&socket);
        let mut command = kind.command(&program, image, &socket);
        if let [first, rest @ ..] = wrapper {
            let mut wrapped = Command::new(first);
            wrapped.args(rest).arg(command.get_program()).args(command.get_args());
            command = wrapped;
        }
        let log = folder.join(format!("{kind:?}.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        pin(Place::Server)?;
        let spawned = command.spawn();
        pin(Place::Client)?;
        let child = match spawned {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            spawned => spawned.with_context(|| format!("Cannot start {}", program.display()))?,
        };
        let mut server = Self { kind, child, socket };
        let came = wait::until(|| (server.socket.exists() || server.has_ended()).then_some(()));
        came.and_then(|()| if server.has_ended() { anyhow::bail!("It has ended") } else { Ok(()) }).with_context(
            || format!("{} does not serve; it says in {}:\n{}", kind.name(), log.display(), said(&log)),
        )?;
        Ok(Some(server))
    }

    /// Which one.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has it end by itself, and waits for that.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        wait::until(|| self.has_ended().then_some(())).with_context(|| format!("{} does not end", self.kind.name()))
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}
