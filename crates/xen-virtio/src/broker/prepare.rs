//! From the toolstack's nodes to all that a worker needs: a checked description, and open files.
//!
//! Runs beside the broker's loop, because opening a file may take as long as a network file system likes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use virtio_disk::{Access, Config, Image, ImageError, Plan};
use xenstore::Store;

use crate::config::{DiskOptions, GuestConfig};
use crate::model::{Class, Device, Disk, Model};
use crate::toolstack::libxl::{DiskNode, Place};
use crate::toolstack::nodes;

/// How long an image may be in use by another before that is an error: longer than a worker without a broker needs to
/// notice its guest's end, and short of the ten seconds that libxl waits.
const IN_USE_PATIENCE: Duration = Duration::from_secs(3);
const IN_USE_RETRY: Duration = Duration::from_millis(50);

/// A device that can be attached.
#[derive(Debug)]
pub struct Prepared {
    /// Its description.
    pub device: Device,
    /// What goes with it, in the order its model wants.
    pub descriptors: Vec<OwnedFd>,
}

/// Reads and opens what a device needs.
///
/// # Errors
/// It cannot be served; the chain of messages says why.
pub async fn prepare(store: &Store, guests: &Path, place: Place) -> anyhow::Result<Prepared> {
    match place.id.class {
        Class::VirtioDisk => prepare_disk(store, guests, place).await,
    }
}

async fn prepare_disk(store: &Store, guests: &Path, place: Place) -> anyhow::Result<Prepared> {
    let keys = nodes::disk_keys(store, place).await?;
    let node = DiskNode::parse(place.domid, &keys)?;
    let name = nodes::guest_name(store, place.domid).await?;
    let guests = guests.to_owned();
    let open = move || {
        let options = GuestConfig::load(&guests, &name)?.disk(&node.vdev);
        let (config, image) = open_image(&node, options)?;
        let model = Model::Disk(Disk { vdev: node.vdev, config });
        Ok(Prepared {
            device: Device { id: place.id, base: node.base, irq: node.irq, model },
            descriptors: vec![image],
        })
    };
    tokio::task::spawn_blocking(open).await.context("Opening the image was cut short")?
}

/// Opens the image, and makes sure while the toolstack can still be told that the worker will be able to serve it.
fn open_image(node: &DiskNode, options: DiskOptions) -> anyhow::Result<(Config, OwnedFd)> {
    let config = Config { read_only: node.read_only, discard: node.discard, ..options.config };
    let image = open_when_free(&node.target, config.access())?;
    Plan::new(&config, &image).with_context(|| match options.origin {
        Some(origin) => format!("Disk {} cannot be as {origin} says", node.vdev),
        None => format!("Disk {} cannot be served", node.vdev),
    })?;
    Ok((config, image.into_file().into()))
}

/// Opens the image as soon as nobody else has it: a guest that reboots may find its former self's worker about to end.
fn open_when_free(path: &Path, access: Access) -> Result<Image, ImageError> {
    let deadline = Instant::now() + IN_USE_PATIENCE;
    loop {
        match Image::open(path, access) {
            Err(ImageError::InUse { .. }) if Instant::now() < deadline => thread::sleep(IN_USE_RETRY),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(target: &Path) -> DiskNode {
        DiskNode {
            target: target.to_owned(),
            vdev: "xvda".into(),
            read_only: false,
            discard: true,
            base: 0x200_0000,
            irq: 33,
        }
    }

    #[test]
    fn a_missing_image_is_named_with_the_reason() {
        let error = open_image(&node(Path::new("/nonexistent.img")), DiskOptions::default()).unwrap_err();

        let text = format!("{error:#}");
        assert!(text.contains("/nonexistent.img") && text.contains("No such file"), "{text}");
    }

    #[test]
    fn an_option_that_does_not_fit_the_image_is_refused_with_its_place() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let config = Config { queues: 17, ..Config::default() };
        let options = DiskOptions { config, origin: Some("guests/web.toml:3".into()) };

        let error = open_image(&node(image.path()), options).unwrap_err();

        let text = format!("{error:#}");
        assert!(text.contains("guests/web.toml:3") && text.contains("17 queues"), "{text}");
    }

    #[test]
    fn an_image_is_opened_as_soon_as_its_former_user_lets_go() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let former = Image::open(image.path(), Access::default()).unwrap();
        let waiting = thread::spawn({
            let path = image.path().to_owned();
            move || open_when_free(&path, Access::default())
        });

        drop(former);

        assert!(waiting.join().unwrap().is_ok());
    }

    #[test]
    fn the_toolstack_decides_whether_the_guest_may_write() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let node = DiskNode { read_only: true, discard: false, ..node(image.path()) };

        let (config, _) = open_image(&node, DiskOptions::default()).unwrap();

        assert!(config.read_only && !config.discard);
    }
}
