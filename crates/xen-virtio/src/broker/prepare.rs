//! From what the toolstack asks for to all that a worker needs: a checked description, and open descriptors.
//!
//! Runs beside the broker's loop, because opening a file may take as long as a network file system likes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Context;
use virtio_backend::Owner;
use xenstore::Store;

use crate::choice::Choice;
use crate::config::{Entry, GuestConfig, GuestName, is_plain};
use crate::model::{Class, Device, Grants, Place};
use crate::toolstack::fixed::Fixed;
use crate::toolstack::libxl::{Description, DiskSpec, KEYS, Node, What, unsaid_grants};
use crate::toolstack::{Toolstack, nodes};

/// A device that can be attached.
#[derive(Debug)]
pub struct Prepared {
    /// Its description.
    pub device: Device,
    /// What goes with it, in the order its model wants; and behind it what its [`Grants`] want.
    pub descriptors: Vec<OwnedFd>,
}

/// Where things are on the host.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Guests' configuration files.
    pub configurations: PathBuf,
    /// Sockets and links that devices make for programs on the host.
    pub runtime: PathBuf,
}

/// Reads and opens what a device needs; `vcpus` is how many the guest has.
///
/// # Errors
/// It cannot be served; the chain of messages says why.
pub async fn prepare(
    toolstack: &Toolstack,
    directories: Directories,
    node: Node,
    vcpus: u16,
) -> anyhow::Result<Prepared> {
    let wanted = match toolstack {
        Toolstack::Libxl(store) => ask_libxl(store, node).await?,
        Toolstack::Static(file) => ask_file(file, node)?,
    };
    tokio::task::spawn_blocking(move || wanted.open(&directories, node, vcpus))
        .await
        .context("Opening was cut short")?
}

/// What is asked for, before anything of the host was looked at.
struct Wanted {
    place: Place,
    grants: Grants,
    name: GuestName,
    what: Source,
}

/// Where a device's options are.
enum Source {
    /// An entry of the guest's file for this disk, and the toolstack's word.
    Disk(DiskSpec, usize),
    /// The entry of the guest's file for the n-th device of this virtio device ID.
    Nth(u32, usize),
    /// This entry.
    Entry(Entry, usize),
}

async fn ask_libxl(store: &Store, node: Node) -> anyhow::Result<Wanted> {
    let Description { place, grants, what } = Description::parse(node, &nodes::keys(store, node, &KEYS).await?)?;
    let grants = match grants {
        Some(grants) => grants,
        None => unsaid_grants(nodes::own_domid(store).await?),
    };
    let name = nodes::guest_name(store, node.domid).await?;
    let what = match what {
        What::Disk(disk) => {
            let disks = nodes::list_of_guest(store, Class::VirtioDisk, node.domid).await?;
            Source::Disk(disk, disks.iter().filter(|other| **other < node).count())
        }
        What::Virtio(id) => Source::Nth(id, nodes::index_among_its_kind(store, node, id).await?),
    };
    Ok(Wanted { place, grants, name, what })
}

fn ask_file(file: &Fixed, node: Node) -> anyhow::Result<Wanted> {
    let found = file.device(node).zip(file.place(node));
    let ((device, index), place) = found.context("The static file has no such device")?;
    let name = GuestName { name: file.name(node.domid).map(str::to_owned), uuid: None };
    Ok(Wanted { place, grants: device.grants, name, what: Source::Entry(device.entry.clone(), index) })
}

impl Wanted {
    /// Opens what the device needs, while the toolstack can still be told that it cannot be served.
    fn open(self, directories: &Directories, node: Node, vcpus: u16) -> anyhow::Result<Prepared> {
        let Self { place, grants, name, what } = self;
        let config = || GuestConfig::load(&directories.configurations, &name);
        let (choice, index) = match what {
            Source::Disk(disk, index) => (Choice::of_disk(&config()?, disk)?, index),
            Source::Nth(id, index) => (Choice::of_nth(&config()?, id, index)?, index),
            Source::Entry(entry, index) => (Choice::of_entry(&entry, index), index),
        };
        let Choice { mut model, called, options, .. } = choice;
        let owner = Owner {
            guest: file_name(&name).unwrap_or_else(|| format!("domain-{}", node.domid)),
            identity: name.uuid.or(name.name).unwrap_or_else(|| node.domid.to_string()),
            index,
            vcpus,
            directory: directories.runtime.clone(),
        };
        let descriptors = model.check().and_then(|()| model.open(&owner)).with_context(|| match &options {
            Some(options) => format!("{called} cannot be as {options} says"),
            None => format!("{called} cannot be served"),
        })?;
        tracing::info!(name: "broker.opened", domid = node.domid, device = %node.id, called, kind = model.kind(),
            host_end = model.host_end(), options = options.map_or("defaults".to_owned(), |options| options.to_string()),
            "Opened what the device needs; changes to its options apply at the guest's next start");
        Ok(Prepared { device: Device { id: node.id, place, grants, name: called, owner, model }, descriptors })
    }
}

/// The guest's name, if it is fit to be part of a file's.
fn file_name(name: &GuestName) -> Option<String> {
    let name = name.name.as_deref()?;
    (is_plain(name) && !name.chars().any(char::is_control)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{DeviceId, Model};

    const NODE: Node = Node { domid: 7, id: DeviceId { class: Class::VirtioDisk, number: 51712 } };

    fn open(guests: &Path, disk: DiskSpec) -> anyhow::Result<Prepared> {
        let name = GuestName { name: Some("web".into()), uuid: None };
        let place = Place { base: 0x200_0000, irq: 33 };
        let directories = Directories { configurations: guests.to_owned(), runtime: guests.to_owned() };
        Wanted { place, grants: Grants::Never, name, what: Source::Disk(disk, 0) }.open(&directories, NODE, 2)
    }

    fn disk(target: &Path) -> DiskSpec {
        DiskSpec { target: target.to_owned(), vdev: "xvda".into(), read_only: false, discard: true }
    }

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        image
    }

    #[test]
    fn a_missing_image_is_named_with_the_reason() {
        let guests = tempfile::tempdir().unwrap();

        let error = open(guests.path(), disk(Path::new("/nonexistent.img"))).unwrap_err();

        let text = format!("{error:#}");
        assert!(text.contains("/nonexistent.img") && text.contains("No such file"), "{text}");
    }

    #[test]
    fn an_option_that_does_not_fit_is_refused_with_its_place() {
        let guests = tempfile::tempdir().unwrap();
        std::fs::write(guests.path().join("web.toml"), "\n[[disk]]\nvdev = \"xvda\"\nqueues = 17\n").unwrap();

        let error = open(guests.path(), disk(image().path())).unwrap_err();

        let text = format!("{error:#}");
        assert!(text.contains("web.toml:2") && text.contains("17 queues"), "{text}");
    }

    #[test]
    fn the_toolstack_decides_whether_the_guest_may_write() {
        let guests = tempfile::tempdir().unwrap();
        let image = image();

        let spec = DiskSpec { read_only: true, discard: false, ..disk(image.path()) };
        let prepared = open(guests.path(), spec).unwrap();

        let Model::Disk(config) = prepared.device.model else { panic!("a disk") };
        assert!(config.read_only && !config.discard);
        assert_eq!((prepared.device.name.as_str(), prepared.descriptors.len()), ("xvda", 1));
    }

    #[test]
    fn a_disks_place_can_hold_the_device_that_a_file_describes() {
        let guests = tempfile::tempdir().unwrap();
        let file = guests.path().join("entropy.toml");
        std::fs::write(&file, "[[rng]]\n").unwrap();

        let prepared = open(guests.path(), disk(&file)).unwrap();

        assert_eq!((prepared.device.model.kind(), prepared.device.name.as_str()), ("rng", "xvda"));
    }

    #[test]
    fn h11_a_name_that_is_no_file_name_is_not_used_as_one() {
        for name in ["", ".", "..", "a/b", "\u{1b}[2J"] {
            assert_eq!(file_name(&GuestName { name: Some(name.into()), uuid: None }), None, "{name:?}");
        }
    }
}
