//! What the device is called, and where its ends on the host are.

use std::path::{Path, absolute};

use anyhow::{Context, bail};
use virtio_backend::Owner;

use crate::cli::VhostUser;
use crate::config::is_plain;

/// Whose device it is: there is no guest to name, so what the operator says, or else the socket.
///
/// # Errors
/// The name cannot be part of a file's name, or nothing says what is needed.
pub(super) fn owner(options: &VhostUser, socket: Option<&Path>) -> anyhow::Result<Owner> {
    let stem = socket.and_then(Path::file_stem).and_then(|stem| stem.to_str());
    let name =
        options.name.as_deref().or(stem).context("The socket's name is none for a device: give one by --name")?;
    if !is_plain(name) || name.chars().any(char::is_control) {
        bail!("The device cannot be called {name:?}, which is no name for a file: choose another by --name");
    }
    let directory = options.directory.as_deref().or_else(|| socket.and_then(Path::parent));
    let directory =
        directory.context("The socket is in no directory: choose one by --run, for what the device needs")?;
    let directory = absolute(directory).context("--run DIR cannot be used")?;
    Ok(Owner { guest: name.to_owned(), identity: name.to_owned(), index: 0, vcpus: 1, directory })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn owner_of(more: &[&str], socket: Option<&str>) -> Result<Owner, String> {
        let line = ["xen-virtio", "vhost-user", "--kind=rng"].iter().chain(more);
        let Command::VhostUser(options) = Cli::parse_from(line).command else { panic!("vhost-user") };
        owner(&options, socket.map(Path::new)).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_socket_names_the_device_and_its_directory_unless_the_operator_does() {
        let owner = owner_of(&[], Some("/run/vms/web.disk.sock")).unwrap();
        assert_eq!((owner.guest.as_str(), owner.directory), ("web.disk", PathBuf::from("/run/vms")));
        let owner = owner_of(&["--name=web", "--run=/tmp/x"], None).unwrap();
        assert_eq!((owner.guest, owner.identity, owner.directory), ("web".into(), "web".into(), "/tmp/x".into()));
    }

    #[test]
    fn what_nothing_says_is_asked_for() {
        assert!(owner_of(&[], None).unwrap_err().contains("--name"));
        assert!(owner_of(&["--name=web"], None).unwrap_err().contains("--run"));
        for name in ["--name=", "--name=.", "--name=a/b", "--name=a\u{1b}[2J"] {
            assert!(owner_of(&[name], Some("/run/a.sock")).unwrap_err().contains("another by --name"), "{name}");
        }
        assert!(owner_of(&[], Some("/run/.sock")).unwrap_err().contains("another by --name"));
    }
}
