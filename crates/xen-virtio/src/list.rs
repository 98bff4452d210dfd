//! `xen-virtio list`: what the running broker serves, for people or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context;

use crate::broker::control::{DeviceListing, Listing};
use crate::client;
use crate::failure::Failure;
use crate::model::Grants;

/// Asks the broker whose runtime directory this is, and prints what it says.
///
/// # Errors
/// None runs there, or it does not answer.
pub fn run(directory: &Path, json: bool) -> Result<(), Failure> {
    let listing = client::list(directory)?;
    let text =
        if json { serde_json::to_string_pretty(&listing).context("Cannot print")? + "\n" } else { table(&listing) };
    // A reader that closes early, such as `head`, has seen what it wanted.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn table(listing: &Listing) -> String {
    if listing.guests.is_empty() {
        return "No guest uses a device of xen-virtio.\n".to_owned();
    }
    let mut text = String::new();
    if listing.no_sandbox {
        line(&mut text, format_args!("WORKERS ARE NOT CONFINED (serve --no-sandbox): for debugging only"));
    }
    for guest in &listing.guests {
        let name = guest.name.as_deref().unwrap_or("(no name)");
        let restarts = match guest.restarts {
            0 => String::new(),
            1 => ", worker restarted once".to_owned(),
            n => format!(", worker restarted {n} times"),
        };
        line(&mut text, format_args!("{} (domain {}){restarts}", printable(name), guest.domid));
        for device in &guest.devices {
            line(&mut text, format_args!("  {}", headline(device)));
            counters(&mut text, "    ", device.counters.iter());
        }
        counters(&mut text, "  ", guest.counters.iter());
    }
    text
}

fn headline(device: &DeviceListing) -> String {
    let DeviceListing { id, model, name, host_end, grants, base, irq, state, driver, counters } = device;
    let mut text = match (model, name) {
        (Some(model), Some(name)) if name.starts_with(model) => printable(name),
        (Some(model), Some(name)) => format!("{model} {}", printable(name)),
        _ => id.clone(),
    };
    if let (Some(base), Some(irq)) = (base, irq) {
        text += &format!(" at {base:#x}, interrupt {irq}");
    }
    text += &format!(": {}", printable(state));
    if let Some(driver) = driver {
        text += &format!(", driver {}", printable(driver));
    }
    if let Some(held) = counters.get("held").filter(|held| **held > 0) {
        let seconds = counters.get("held_seconds").copied().unwrap_or(0);
        text += &format!(", {held} requests held for {seconds} s (`xen-virtio resume`)");
    }
    match grants {
        None | Some(Grants::Never) => {}
        Some(Grants::Allowed) => text += ", memory by grants if the guest likes",
        Some(Grants::Only) => text += ", memory by grants",
    }
    if let Some(host_end) = host_end.as_deref().filter(|host_end| !host_end.is_empty()) {
        text += &format!("; {}", printable(host_end));
    }
    text
}

/// Those that counted anything, as many to a line as fit.
fn counters<'a>(text: &mut String, indent: &str, counters: impl Iterator<Item = (&'a String, &'a u64)>) {
    const WIDTH: usize = 100;
    let mut row = String::new();
    for (name, value) in counters.filter(|(_, value)| **value > 0) {
        let item = format!("{} {value}", printable(name));
        if !row.is_empty() && indent.len() + row.len() + 2 + item.len() > WIDTH {
            line(text, format_args!("{indent}{row}"));
            row.clear();
        }
        row += if row.is_empty() { "" } else { ", " };
        row += &item;
    }
    if !row.is_empty() {
        line(text, format_args!("{indent}{row}"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

/// Words from elsewhere must not move the terminal's cursor.
fn printable(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::broker::control::{GuestListing, listed};

    fn disk() -> DeviceListing {
        DeviceListing {
            id: "virtio_disk/51712".into(),
            model: Some("disk".into()),
            name: Some("xvda".into()),
            host_end: Some("/dev/vg/web".into()),
            grants: Some(Grants::Never),
            base: Some(0x200_0000),
            irq: Some(33),
            state: "serving".into(),
            driver: Some("running".into()),
            counters: BTreeMap::from([("requests".into(), 12), ("faults".into(), 0)]),
        }
    }

    fn guest(name: &str, device: DeviceListing) -> Listing {
        let counters = BTreeMap::from([("traps".into(), 99)]);
        let (name, devices) = (Some(name.into()), vec![device]);
        Listing { guests: vec![GuestListing { domid: 7, name, restarts: 0, counters, devices }], ..Listing::default() }
    }

    #[test]
    fn a_person_reads_guests_devices_and_what_was_counted() {
        let text = table(&guest("web", disk()));

        let expected = "web (domain 7)\n  disk xvda at 0x2000000, interrupt 33: serving, driver running; /dev/vg/web\n    \
                        requests 12\n  traps 99\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn that_workers_are_not_confined_is_told_first() {
        let listing = Listing { no_sandbox: true, ..guest("web", disk()) };

        assert!(table(&listing).starts_with("WORKERS ARE NOT CONFINED (serve --no-sandbox)"), "{}", table(&listing));
    }

    #[test]
    fn how_often_a_worker_died_is_told_with_its_guest() {
        let mut listing = guest("web", disk());
        for (restarts, headline) in
            [(1, "web (domain 7), worker restarted once\n"), (3, "web (domain 7), worker restarted 3 times\n")]
        {
            listing.guests[0].restarts = restarts;
            assert!(table(&listing).starts_with(headline), "{}", table(&listing));
        }
    }

    #[test]
    fn what_waits_for_the_operator_is_told_where_it_is_seen() {
        let counters = BTreeMap::from([("held".into(), 3), ("held_seconds".into(), 75)]);

        let text = table(&guest("web", DeviceListing { counters, ..disk() }));

        assert!(text.contains("driver running, 3 requests held for 75 s (`xen-virtio resume`); /dev"), "{text}");
    }

    #[test]
    fn a_device_whose_memory_is_not_mapped_is_told_from_those_whose_is() {
        let text = table(&guest("web", DeviceListing { grants: Some(Grants::Only), ..disk() }));

        assert!(text.contains(": serving, driver running, memory by grants; /dev/vg/web\n"), "{text}");
    }

    #[test]
    fn a_device_of_which_nothing_is_known_yet_is_shown_by_its_place() {
        let unknown = listed("virtio_disk/51712", "failed");

        assert!(table(&guest("web", unknown)).contains("  virtio_disk/51712: failed\n"));
    }

    #[test]
    fn h11_names_cannot_steer_the_terminal() {
        let device = DeviceListing { driver: Some("\u{1b}[2J".into()), ..disk() };

        assert!(!table(&guest("\r\u{1b}]0;x", device)).contains(['\u{1b}', '\r']));
    }

    #[test]
    fn long_rows_of_counters_are_broken() {
        let counters = (0..40).map(|n| (format!("counter_{n}"), 1)).collect();

        let text = table(&guest("web", DeviceListing { counters, ..disk() }));

        assert!(text.lines().count() > 5 && text.lines().all(|line| line.len() <= 100), "{text}");
    }
}
