//! `xen-virtio upgrade`: another program takes the place of the one that runs, guests running.
//!
//! Asks the broker, which refuses before it touches anything or becomes that program; then waits for what answers in its
//! place, and looks whether all goes on.

use std::env;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::broker::control::{DeviceListing, Listing};
use crate::cli::Upgrade;
use crate::client;
use crate::failure::Failure;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long all guests together may take; each needs a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has the broker become another program, and says what came of it.
///
/// # Errors
/// It refuses, and goes on; or not all that it served goes on after it.
pub fn run(options: &Upgrade) -> Result<(), Failure> {
    let directory = &options.runtime.directory;
    let binary = match &options.binary {
        Some(path) => path.canonicalize().with_context(|| format!("There is no {}", path.display()))?,
        None => env::current_exe().context("Cannot find this program's file; name it by --binary")?,
    };
    let before = client::list(directory)?;
    let process = client::process(directory)?;
    let program = client::upgrade(directory, &binary)?;
    let after = wait_for_next(directory, &before, &process).map_err(|how| {
        anyhow!(
            "{} was started in the place of xen-virtio {}, and {how}: its log says why. The guests' workers go on; install \
             the version before, and start it by `systemctl restart xen-virtio`",
            binary.display(),
            before.program
        )
    })?;
    if after.program != program {
        return Err(anyhow!(
            "xen-virtio {program} could not be started; {} has begun anew, and its log says why",
            after.program
        )
        .into());
    }
    let (said, is_whole) = outcome(&after);
    println!("{said}");
    if is_whole { Ok(()) } else { Err(anyhow!("Not everything goes on; the log says why").into()) }
}

/// Waits until another broker answers, and has brought back what the one before served. Else says what has become of the
/// process that was to do so.
fn wait_for_next(directory: &Path, before: &Listing, process: &OwnedFd) -> Result<Listing, &'static str> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // In this order: what has ended does not answer, but the one after it may.
        let ended = has_ended(process);
        let next = client::list(directory).ok().filter(|now| now.instance != before.instance);
        let is_late = Instant::now() >= deadline;
        match next {
            Some(now) if is_late || now.devices().all(is_settled) => return Ok(now),
            None if ended => return Err("has ended"),
            None if is_late => return Err("does not answer"),
            _ => thread::sleep(LOOK),
        }
    }
}

/// The service manager, which may wait for this very process before it starts another one, must not be waited for.
fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec::default();
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

fn is_settled(device: &DeviceListing) -> bool {
    !["starting", "restarting", "closing"].contains(&&*device.state)
}

/// What there is to say of a broker that has taken over, and whether all is well.
fn outcome(now: &Listing) -> (String, bool) {
    let serving = now.devices().filter(|device| device.state == "serving").count();
    let mut said = format!(
        "xen-virtio {} serves {} and {}",
        now.program,
        count(now.guests.len(), "guest"),
        count(serving, "device")
    );
    let mut is_whole = true;
    for guest in &now.guests {
        for device in guest.devices.iter().filter(|device| device.state != "serving" && device.state != "failed") {
            let guest = guest.name.clone().unwrap_or_else(|| format!("domain {}", guest.domid));
            let device_name = device.name.as_deref().unwrap_or(&device.id);
            said += &format!("\n{device_name} of guest {guest}: {}", device.state);
            is_whole = false;
        }
    }
    (said, is_whole)
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::broker::control::{GuestListing, SOCKET, listed};

    fn listing(states: &[&str]) -> Listing {
        let device = |state: &&str| DeviceListing { name: Some("xvda".into()), ..listed("virtio_disk/51712", state) };
        let devices = states.iter().map(device).collect();
        let guest =
            GuestListing { domid: 7, name: Some("web".into()), restarts: 0, counters: BTreeMap::new(), devices };
        Listing { program: "1.2.3".into(), instance: 1, guests: vec![guest], ..Listing::default() }
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        child.wait().unwrap();

        let why = wait_for_next(directory.path(), &listing(&[]), &process).unwrap_err();

        assert_eq!(why, "has ended");
    }

    #[test]
    fn the_process_that_answers_is_found_and_has_not_ended() {
        let directory = tempfile::tempdir().unwrap();
        let _socket = UnixListener::bind(directory.path().join(SOCKET)).unwrap();

        let process = client::process(directory.path()).unwrap();

        assert!(!has_ended(&process));
    }

    #[test]
    fn all_is_well_if_what_was_served_is_and_what_had_failed_before_is_not_held_against_it() {
        let (said, is_whole) = outcome(&listing(&["serving", "serving", "failed"]));
        assert_eq!((said.as_str(), is_whole), ("xen-virtio 1.2.3 serves 1 guest and 2 devices", true));
    }

    #[test]
    fn what_does_not_go_on_is_named() {
        let (said, is_whole) = outcome(&listing(&["serving", "left to a former worker"]));
        assert!(said.ends_with("1 device\nxvda of guest web: left to a former worker"), "{said}");
        assert!(!is_whole);
    }

    #[test]
    fn what_is_on_its_way_is_waited_for() {
        let is_settled = |state| listing(&[state]).devices().all(is_settled);
        assert!(is_settled("serving") && is_settled("given up") && !is_settled("restarting"));
    }
}
