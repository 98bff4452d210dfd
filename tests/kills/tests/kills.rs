//! A guest whose disk is killed all the time.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::env;

use kills::Campaign;
use virtio_disk::Format;

fn campaign(kills: u64) -> Campaign {
    let seed = env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let (program, folder) = (env!("CARGO_BIN_EXE_kills").into(), env!("CARGO_TARGET_TMPDIR").into());
    Campaign { program, folder, format: Format::Raw, kills, seed, forgets: false }
}

#[test]
fn a_guest_does_not_notice_that_its_disk_is_killed() {
    let report = campaign(10_000).run().unwrap();
    println!("{report}");
    // With less the kills would have struck a device that does nothing.
    assert!(report.tally.answers > 10_000 && report.tally.resets > 100, "{report}");
}

#[test]
fn a_guest_does_not_notice_that_the_process_which_knew_its_images_tables_is_killed() {
    let report = Campaign { format: Format::Qcow2, ..campaign(1000) }.run().unwrap();
    println!("{report}");
    assert!(report.tally.answers > 1000, "{report}");
}

#[test]
fn a_guest_notices_when_nobody_keeps_the_record() {
    let found = Campaign { forgets: true, ..campaign(50) }.run().unwrap_err();
    assert!(format!("{found:#}").starts_with("The guest after"), "{found:#}");
}
