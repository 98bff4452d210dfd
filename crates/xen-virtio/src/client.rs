//! Asking the running broker, for the commands that do: `list`, `link`, `resize`, `resume`, `upgrade`, `wait`.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;

use crate::broker::control::{Listing, Outcome, Question, SOCKET};

/// Longer than the broker waits for all its workers.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the broker serves whose runtime directory this is.
///
/// # Errors
/// None runs there, or it does not answer.
pub fn list(directory: &Path) -> anyhow::Result<Listing> {
    ask(directory, &Question::List)
}

/// The process that it is, as a descriptor that can be read from once that has ended. Another program that it becomes is the
/// same process.
///
/// # Errors
/// None runs there.
pub fn process(directory: &Path) -> anyhow::Result<OwnedFd> {
    let broker = connect(directory)?;
    let open = || pidfd_open(socket_peercred(&broker)?.pid, PidfdFlags::empty());
    open().context("Cannot find the process of xen-virtio")
}

/// Has it do something to a device.
///
/// # Errors
/// None runs there, it does not answer, or it does not do it.
pub fn operate(directory: &Path, question: &Question) -> anyhow::Result<()> {
    ask::<Outcome>(directory, question)?.map_err(|why| anyhow!(why))
}

/// Has it become another program, by this absolute path. Gives that one's version.
///
/// # Errors
/// None runs there, it does not answer, or that program cannot take its place.
pub fn upgrade(directory: &Path, binary: &Path) -> anyhow::Result<String> {
    ask::<Result<String, String>>(directory, &Question::Upgrade { binary: binary.to_owned() })?
        .map_err(|why| anyhow!(why).context("Nothing was changed"))
}

fn ask<A: DeserializeOwned>(directory: &Path, question: &Question) -> anyhow::Result<A> {
    let mut broker = connect(directory)?;
    let mut exchange = || -> io::Result<Vec<u8>> {
        broker.set_read_timeout(Some(PATIENCE))?;
        broker.write_all((serde_json::to_string(question)? + "\n").as_bytes())?;
        let mut answer = Vec::new();
        broker.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer =
        exchange().with_context(|| format!("xen-virtio does not answer on {}", directory.join(SOCKET).display()))?;
    serde_json::from_slice(&answer).context("xen-virtio answered with something else; is it of another version?")
}

fn connect(directory: &Path) -> anyhow::Result<UnixStream> {
    let socket = directory.join(SOCKET);
    UnixStream::connect(&socket).map_err(|error| explain(&socket, error))
}

fn explain(socket: &Path, error: io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "xen-virtio does not run; start it with `systemctl start xen-virtio`"
        }
        io::ErrorKind::PermissionDenied => "Only root may ask xen-virtio; try again with sudo",
        _ => "Cannot ask xen-virtio",
    };
    anyhow!(error).context(format!("{remedy} (socket {})", socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_broker_there_is_a_remedy() {
        let error = list(Path::new("/nonexistent")).unwrap_err();

        assert!(format!("{error:#}").contains("systemctl start xen-virtio"), "{error:#}");
    }
}
