//! A guest's file, `/etc/xen-virtio/guests/<name or uuid>.toml`: what the toolstack has no words for.
//!
//! Read when a device of the guest is prepared, so changes apply at the guest's next start. Guests without one share
//! `default.toml`; so do those whose name a driver domain is not told. If that is not there either, all is as it is by
//! default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virtio_backend::Kind;
use virtio_disk::Disk;

use super::claims::Claims;
use super::document::{Document, is_plain};
use super::entry::Written;
use super::{ConfigError, Entry};
use crate::model::Model;

/// Where guests' files are, unless the command line says otherwise.
pub const DIRECTORY: &str = "/etc/xen-virtio/guests";

/// Keys of a disk that the toolstack has words for, and which.
const TOOLSTACK_KEYS: [(&str, &str); 3] = [("image", "target="), ("read_only", "access="), ("discard", "no-discard")];

/// The name of the file for guests that have none of their own.
const SHARED: &str = "default";

/// What is said of one guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestConfig {
    entries: Vec<Entry>,
    /// It is said of other guests, too.
    is_shared: bool,
}

/// How the toolstack names a guest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GuestName {
    /// `name=` of its xl configuration.
    pub name: Option<String>,
    /// Its uuid, in lower case.
    pub uuid: Option<String>,
}

impl GuestConfig {
    /// Reads the file of a guest from `directory`, or that of guests without one; all is as it is by default if there is
    /// neither.
    ///
    /// # Errors
    /// There is a file and it cannot be used, or there are two of the guest's own.
    pub fn load(directory: &Path, guest: &GuestName) -> Result<Self, ConfigError> {
        let find = |stem: &str| match file_of(directory, stem) {
            Some(file) => Document::find(&file),
            None => Ok(None),
        };
        let own = |stem: &Option<String>| stem.as_deref().map_or(Ok(None), find);
        match (own(&guest.name)?, own(&guest.uuid)?) {
            (Some(by_name), Some(by_uuid)) => {
                Err(ConfigError::Two { by_name: by_name.file().to_owned(), by_uuid: by_uuid.file().to_owned() })
            }
            (Some(document), None) | (None, Some(document)) => Self::parse(&document),
            (None, None) => match find(SHARED)? {
                Some(document) => Ok(Self { is_shared: true, ..Self::parse(&document)? }),
                None => Ok(Self::default()),
            },
        }
    }

    /// Whether a file of this name, without its ending, is what [`load`](Self::load) reads for a guest.
    pub fn is_of(stem: &str, directory: &Path, guest: &GuestName) -> bool {
        let mut own = [&guest.name, &guest.uuid].into_iter().flatten();
        let is_there = |stem: &String| file_of(directory, stem).is_some_and(|file| file.exists());
        own.clone().any(|own| own == stem) || (stem == SHARED && !own.any(is_there))
    }

    /// Whether other guests have it, too: then not all that it says need concern this one.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Reads a guest's file, wherever it is.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Document::read(file)?)
    }

    /// What is said of the toolstack's disk `vdev`.
    pub fn disk(&self, vdev: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.vdev.as_deref() == Some(vdev))
    }

    /// What is said of the guest's device `index`, from 0, of those with this virtio device ID that are no disks of the
    /// toolstack's: the entries of a kind are for the devices of that kind in their order.
    pub fn nth(&self, device_id: u32, index: usize) -> Option<&Entry> {
        let of_kind = |entry: &&Entry| entry.vdev.is_none() && entry.model.device_id() == device_id;
        self.entries.iter().filter(of_kind).nth(index)
    }

    /// Everything that is said, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn parse(document: &Document) -> Result<Self, ConfigError> {
        let mut vdevs = BTreeMap::new();
        let mut claims = Claims::default();
        let mut entries = Vec::new();
        for mut written in Written::all(document, document.root()?, "")? {
            let vdev = if written.kind == Disk::NAME { written.take::<String>("vdev")? } else { None };
            let entry = match vdev {
                Some(vdev) => {
                    let vdev = vdev.into_inner();
                    if let Some(line) = vdevs.insert(vdev.clone(), written.origin().line) {
                        let what = format!("Disk {vdev} has an entry in line {line} already; merge the two");
                        return Err(written.wrong(what));
                    }
                    toolstack_disk(written, vdev)?
                }
                None => {
                    let entry = whole_device(&mut written)?;
                    claims.claim(&written, &entry)?;
                    entry
                }
            };
            entries.push(entry);
        }
        Ok(Self { entries, is_shared: false })
    }
}

/// A disk of which the toolstack says the rest.
fn toolstack_disk(mut written: Written<'_>, vdev: String) -> Result<Entry, ConfigError> {
    for (key, word) in TOOLSTACK_KEYS {
        if written.has(key) {
            let what =
                format!("`{key}` of disk {vdev} is for the guest's xl configuration to say: {word} in its disk=[]");
            return Err(written.wrong_key(key, what));
        }
    }
    let model = written.model()?;
    if let Model::Disk(config) = &model {
        // Any image stands for that of the toolstack.
        written.check(&Model::Disk(virtio_disk::Config { image: PathBuf::from("image"), ..config.clone() }))?;
    }
    Ok(Entry { model, vdev: Some(vdev), origin: written.origin() })
}

/// A device of which all is written here.
fn whole_device(written: &mut Written<'_>) -> Result<Entry, ConfigError> {
    if written.kind == Disk::NAME && !written.has("image") {
        let what =
            "A disk has either vdev = \"xvda\", where it is in xl's disk=[], or an image = \"/dev/vg/web\" of its own";
        return Err(written.wrong(what));
    }
    written.entry()
}

/// The file of a name, if the name is fit to be a file's: it comes from xenstore.
fn file_of(directory: &Path, stem: &str) -> Option<PathBuf> {
    is_plain(stem).then(|| directory.join(format!("{stem}.toml")))
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
