//! Ports of Open vSwitch, by its own tool: the database's schema is its business.

use std::io;
use std::process::{Command, Output};

use virtio_backend::Owner;

use super::HostError;

/// Seconds that Open vSwitch gets to put a port to work, or to say why not. It is ovs-vsctl that gives up.
const TIMEOUT: &str = "--timeout=5";

/// Makes `tap` a port of `bridge`. The port is described by the external IDs that controllers of virtual networks look
/// for (ovs-vswitchd.conf.db(5)): the guest's address, its name and its identity.
///
/// # Errors
/// Open vSwitch is not there, or refuses. No port is left behind.
pub(super) fn add_port(bridge: &str, tap: &str, mac: &str, owner: &Owner) -> Result<(), HostError> {
    let described = [
        format!("external-ids:attached-mac={}", quoted(mac)),
        format!("external-ids:iface-id={}", quoted(&format!("{}-net{}", owner.identity, owner.index))),
        format!("external-ids:iface-status={}", quoted("active")),
        format!("external-ids:vm-id={}", quoted(&owner.identity)),
        format!("external-ids:vm-name={}", quoted(&owner.guest)),
    ];
    let mut command = Command::new("ovs-vsctl");
    command
        .args([TIMEOUT, "--", "--may-exist", "add-port", bridge, tap, "--", "set", "interface", tap])
        .args(described);
    let said = said(command.output()).map_err(|source| HostError::NoOvs { source })?;
    let Err(said) = said else { return Ok(()) };
    // The port may be in the database, and only its switch did not answer in time.
    remove_port(bridge, tap);
    Err(HostError::Ovs { bridge: bridge.to_owned(), name: tap.to_owned(), said })
}

/// Removes the port `tap` of `bridge`, if there is one; without waiting for the switch, which finds out by itself.
pub(super) fn remove_port(bridge: &str, tap: &str) {
    let removed =
        Command::new("ovs-vsctl").args([TIMEOUT, "--no-wait", "--", "--if-exists", "del-port", bridge, tap]).output();
    match said(removed) {
        Ok(Ok(())) => {}
        Ok(Err(said)) => tracing::warn!(bridge, tap, said, "Open vSwitch keeps the port of a tap that is gone"),
        Err(error) => tracing::warn!(bridge, tap, %error, "Open vSwitch keeps the port of a tap that is gone"),
    }
}

/// What ovs-vsctl had to complain of, if it ran.
fn said(output: io::Result<Output>) -> io::Result<Result<(), String>> {
    let output = output?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.trim().replace('\n', "; ");
    Ok(Err(if complaint.is_empty() { format!("ovs-vsctl ended with {}", output.status) } else { complaint }))
}

/// A string as the database's tools read it (ovs-vsctl(8), "Database Values"): in quotes, for a colon or a comma would
/// have a meaning.
fn quoted(value: &str) -> String {
    let escaped: String = value
        .chars()
        .flat_map(|character| {
            let is_special = matches!(character, '"' | '\\');
            is_special.then_some('\\').into_iter().chain([character])
        })
        .collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_reads_as_one_string() {
        assert_eq!(quoted("00:16:3e:00:00:01"), "\"00:16:3e:00:00:01\"");
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
