//! `xen-virtio link`, `resize`, `resume` and `wait`: what operators do to guests that are served.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use virtio_backend::Operation;

use crate::broker::control::{GuestListing, Listing, Question};
use crate::cli::{Cable, Link, Resize, Resume, Wait};
use crate::client;
use crate::failure::Failure;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Plugs a guest's network cable in, or pulls it out.
///
/// # Errors
/// There is no such device, or no broker that knows.
pub fn link(options: &Link) -> Result<(), Failure> {
    let operation = Operation::Link { up: options.cable == Cable::Up };
    operate(&options.runtime.directory, &options.guest, &options.device, operation)
}

/// Lets a guest know that its disk has another size.
///
/// # Errors
/// There is no such device, or no broker that knows; or its image cannot be served in its size.
pub fn resize(options: &Resize) -> Result<(), Failure> {
    let operation = Operation::Resize { shrink: options.shrink };
    operate(&options.runtime.directory, &options.guest, &options.device, operation)
}

/// Has a disk try again what it holds.
///
/// # Errors
/// There is no such device, or no broker that knows; or it holds nothing.
pub fn resume(options: &Resume) -> Result<(), Failure> {
    operate(&options.runtime.directory, &options.guest, &options.device, Operation::Resume)
}

fn operate(directory: &Path, guest: &str, device: &str, operation: Operation) -> Result<(), Failure> {
    let (guest, device) = (guest.to_owned(), device.to_owned());
    Ok(client::operate(directory, &Question::Operate { guest, device, operation })?)
}

/// Waits until all devices of a guest are there.
///
/// # Errors
/// One of them failed, or they are not there in time.
pub fn wait(options: &Wait) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    loop {
        let listing = client::list(&options.runtime.directory)?;
        let found = find(&listing, &options.guest);
        match found.map(progress) {
            Some(Progress::Ready) => return Ok(()),
            Some(Progress::Failed(device)) => {
                return Err(anyhow!("{device} of guest {} cannot be served; the log says why", options.guest).into());
            }
            _ if Instant::now() < deadline => thread::sleep(LOOK),
            Some(Progress::Coming) => {
                return Err(anyhow!("The devices of guest {} are not ready yet", options.guest).into());
            }
            None => return Err(anyhow!("No guest {} uses a device of xen-virtio", options.guest).into()),
        }
    }
}

enum Progress {
    Ready,
    Coming,
    /// This device will not be there.
    Failed(String),
}

fn find<'a>(listing: &'a Listing, guest: &str) -> Option<&'a GuestListing> {
    let is_meant = |known: &&GuestListing| known.name.as_deref() == Some(guest) || guest.parse() == Ok(known.domid);
    listing.guests.iter().find(is_meant)
}

fn progress(guest: &GuestListing) -> Progress {
    if let Some(failed) = guest.devices.iter().find(|device| ["failed", "given up"].contains(&&*device.state)) {
        return Progress::Failed(failed.name.clone().unwrap_or_else(|| failed.id.clone()));
    }
    match guest.devices.iter().all(|device| device.state == "serving") && !guest.devices.is_empty() {
        true => Progress::Ready,
        false => Progress::Coming,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::broker::control::listed;

    fn guest(states: &[&str]) -> GuestListing {
        let device = |state: &&str| listed("virtio/0", state);
        let devices = states.iter().map(device).collect();
        GuestListing { domid: 7, name: Some("web".into()), restarts: 0, counters: BTreeMap::new(), devices }
    }

    #[test]
    fn a_guest_is_ready_when_all_its_devices_are_and_fails_with_one() {
        assert!(matches!(progress(&guest(&["serving", "serving"])), Progress::Ready));
        assert!(matches!(progress(&guest(&["serving", "starting"])), Progress::Coming));
        assert!(matches!(progress(&guest(&[])), Progress::Coming));
        assert!(matches!(progress(&guest(&["starting", "failed"])), Progress::Failed(id) if id == "virtio/0"));
    }

    #[test]
    fn a_guest_is_known_by_name_and_by_domain_id() {
        let listing = Listing { guests: vec![guest(&[])], ..Listing::default() };

        assert!(find(&listing, "web").is_some() && find(&listing, "7").is_some());
        assert!(find(&listing, "8").is_none());
    }
}
