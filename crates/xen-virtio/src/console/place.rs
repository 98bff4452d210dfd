//! Where a guest's port is.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use crate::broker::control::GuestListing;
use crate::client;

/// The host's end of a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A pseudo-terminal.
    Terminal(PathBuf),
    /// A socket that listens.
    Socket(PathBuf),
}

/// Finds a port by its number or name.
///
/// # Errors
/// There is none, or none that one can be attached to, and what to do instead.
pub(super) fn find(runtime: &Path, guest: &str, port: &str) -> anyhow::Result<End> {
    let ports = directory_of(runtime, guest)?;
    let path = below(&ports, port).ok_or_else(|| anyhow!("{port:?} is no port's name"))?;
    let end = match fs::canonicalize(&path) {
        Ok(end) => end,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "Guest {guest} has no port {port:?} that can be attached to; it has {}. `xen-virtio list` shows where \
             others lead",
            names(&ports)
        ),
        Err(error) => return Err(refused(error, &path)),
    };
    let kind = fs::metadata(&end).map_err(|error| refused(error, &end))?.file_type();
    if kind.is_char_device() {
        Ok(End::Terminal(end))
    } else if kind.is_socket() {
        Ok(End::Socket(end))
    } else {
        bail!("Port {port} of {guest} goes to a file; read it with `tail -F {}`", end.display())
    }
}

/// By the guest's name, or by its domain id, which the broker knows.
fn directory_of(runtime: &Path, guest: &str) -> anyhow::Result<PathBuf> {
    let consoles = runtime.join("consoles");
    let by_name = below(&consoles, guest).ok_or_else(|| anyhow!("{guest:?} is no guest's name"))?;
    match fs::read_dir(&by_name) {
        Ok(_) => return Ok(by_name),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(refused(error, &by_name)),
        Err(_not_there) => {}
    }
    let listing = client::list(runtime).with_context(|| format!("Guest {guest} has no console here"))?;
    let is_meant = |listed: &&GuestListing| listed.name.as_deref() == Some(guest) || listed.domid.to_string() == guest;
    let listed = listing.guests.iter().find(is_meant);
    let listed = listed.ok_or_else(|| anyhow!("No guest {guest} uses a device of xen-virtio"))?;
    let name = listed.name.clone().unwrap_or_else(|| format!("domain-{}", listed.domid));
    let directory = below(&consoles, &name).filter(|directory| directory.is_dir());
    directory.ok_or_else(|| {
        anyhow!(
            "Guest {guest} has no console; give it one by a [[console]] entry in its file and in its xl configuration"
        )
    })
}

/// A name must not lead elsewhere.
fn below(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Some(directory.join(name)),
        _ => None,
    }
}

/// The links, which are the names that people use.
fn names(ports: &Path) -> String {
    let entries = fs::read_dir(ports).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let mut names: Vec<_> = links.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn refused(error: std::io::Error, path: &Path) -> anyhow::Error {
    let remedy = if error.kind() == ErrorKind::PermissionDenied {
        "Only root may open consoles; try again with sudo"
    } else {
        "Cannot look for the console"
    };
    anyhow!(error).context(format!("{remedy} ({})", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A runtime directory with a guest that has a port of each kind.
    fn runtime() -> tempfile::TempDir {
        let runtime = tempfile::tempdir().unwrap();
        let ports = runtime.path().join("consoles/web");
        fs::create_dir_all(&ports).unwrap();
        let _listener = UnixListener::bind(ports.join("agent.sock")).unwrap();
        fs::write(runtime.path().join("log"), "").unwrap();
        symlink("/dev/null", ports.join("0")).unwrap();
        symlink(ports.join("agent.sock"), ports.join("agent")).unwrap();
        symlink(runtime.path().join("log"), ports.join("log")).unwrap();
        symlink("/dev/pts/gone", ports.join("gone")).unwrap();
        runtime
    }

    fn refusal(guest: &str, port: &str) -> String {
        format!("{:#}", find(runtime().path(), guest, port).unwrap_err())
    }

    #[test]
    fn a_port_is_what_its_link_leads_to() {
        let runtime = runtime();
        assert_eq!(find(runtime.path(), "web", "0").unwrap(), End::Terminal("/dev/null".into()));
        let socket = fs::canonicalize(runtime.path()).unwrap().join("consoles/web/agent.sock");
        assert_eq!(find(runtime.path(), "web", "agent").unwrap(), End::Socket(socket));
    }

    #[test]
    fn what_is_missing_is_told_with_what_there_is() {
        assert!(refusal("web", "log").contains("tail -F /"));
        assert!(refusal("web", "7").contains("it has 0, agent, gone, log"));
        assert!(refusal("web", "gone").contains("no port \"gone\""));
        assert!(refusal("db", "0").contains("systemctl start"), "nobody can be asked");
    }

    #[test]
    fn names_cannot_lead_elsewhere() {
        for name in ["..", ".", "", "a/b", "/etc", "web/", "./web"] {
            assert!(refusal(name, "0").contains("no guest's name"), "{name:?}");
            assert!(refusal("web", name).contains("no port's name"), "{name:?}");
        }
    }
}
