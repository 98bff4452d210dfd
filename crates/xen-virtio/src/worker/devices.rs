//! From a description to a device.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use virtio_backend::Backend;
use virtio_disk::Image;

use crate::model::{Disk, Model};

/// Makes the device that a model describes, of the descriptors that came with it.
///
/// # Errors
/// The descriptors are not those the model needs, or its backend does not take them.
pub(super) fn make(model: &Model, descriptors: Vec<OwnedFd>) -> anyhow::Result<Arc<dyn Backend>> {
    match model {
        Model::Disk(disk) => make_disk(disk, descriptors),
    }
}

fn make_disk(disk: &Disk, descriptors: Vec<OwnedFd>) -> anyhow::Result<Arc<dyn Backend>> {
    let [image] = <[_; 1]>::try_from(descriptors).ok().context("A disk comes with one image")?;
    let image = Image::from_file(File::from(image), &disk.vdev)?;
    Ok(Arc::new(virtio_disk::Disk::new(&disk.config, image)?))
}
