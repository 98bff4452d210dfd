//! What a broker notes of its guests for the one that follows it: a file for each, in the runtime directory.
//!
//! Descriptions are the broker's own. What is open, and the records, are with the guest's worker, which may be its guest's by
//! now: it is believed in nothing that is written here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::guest::Guest;
use crate::config::GuestName;
use crate::door;
use crate::model::{Device, DeviceId};
use crate::protocol::{Former, VERSION};
use crate::toolstack::lifecycle::Stage;

/// A guest with a worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Notes {
    /// [`VERSION`] of the broker.
    pub version: u32,
    /// What people call it.
    pub names: GuestName,
    /// Its IOREQ server, and the windows that this has or is to have.
    pub former: Former,
    /// The devices that its worker was given.
    pub devices: Vec<Device>,
    /// Those of them that are given up.
    pub given_up: Vec<DeviceId>,
    /// Windows in which the worker shows that there is no device.
    pub vacant: Vec<DeviceId>,
}

impl Notes {
    /// What there is to note of a guest, if it has an IOREQ server.
    pub fn of(guest: &Guest) -> Option<Self> {
        let in_stage = |wanted: &Stage| {
            let devices = guest.lifecycle.devices().filter(|(_, stage)| *stage == wanted);
            devices.map(|(id, _)| id).collect()
        };
        Some(Self {
            version: VERSION,
            names: guest.names.clone(),
            former: guest.former()?,
            devices: guest.devices.values().map(|served| served.device.clone()).collect(),
            given_up: in_stage(&Stage::GivenUp),
            vacant: in_stage(&Stage::Vacant),
        })
    }

    /// Writes them, in the place of what was noted.
    ///
    /// # Errors
    /// The runtime directory cannot be written to.
    pub fn write(&self, runtime: &Path, domid: u16) -> io::Result<()> {
        let path = path(runtime, domid);
        let draft = path.with_extension("draft");
        door::directory(runtime)?;
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, path)
    }

    /// The guests of whom there are notes, and these.
    ///
    /// # Errors
    /// The runtime directory cannot be read. An error of a guest's own: they cannot be read, or are of another version.
    pub fn read_all(runtime: &Path) -> io::Result<Vec<(u16, anyhow::Result<Self>)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(door::directory(runtime)?)? {
            let path = entry?.path();
            let domid = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            if let Some(domid) = domid.filter(|_| path.extension().is_some_and(|extension| extension == EXTENSION)) {
                all.push((domid, read(&path)));
            }
        }
        Ok(all)
    }
}

/// Forgets a guest whose worker has ended, and takes that one's door away.
///
/// # Errors
/// They cannot be removed.
pub(super) fn forget(runtime: &Path, domid: u16) -> io::Result<()> {
    match fs::remove_file(path(runtime, domid)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    door::wall_up(runtime, domid)
}

const EXTENSION: &str = "json";

fn path(runtime: &Path, domid: u16) -> PathBuf {
    door::place(runtime).join(format!("{domid}.{EXTENSION}"))
}

fn read(path: &Path) -> anyhow::Result<Notes> {
    /// What all versions have.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let text = fs::read(path)?;
    let Versioned { version } = serde_json::from_slice(&text).context("What was noted of it is garbled")?;
    anyhow::ensure!(version == VERSION, "The former xen-virtio was of version {version}, and this is {VERSION}");
    serde_json::from_slice(&text).context("What was noted of it is garbled")
}
