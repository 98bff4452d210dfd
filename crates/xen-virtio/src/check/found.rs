//! What an entry of xl's comes to together with the guest's TOML file, as the broker would put them together.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::disk::DiskEntry;
use crate::config::{Entry, GuestConfig, Origin, device_file, is_device_file};
use crate::model::Model;

/// A device of which it is known what it is.
#[derive(Debug)]
pub(super) struct Found {
    /// What people call it, unique within the guest: `xvda`, `net0`.
    pub(super) called: String,
    /// What it is.
    pub(super) model: Model,
    /// Where its options are; `None`: nowhere, it has the defaults.
    pub(super) options: Option<Origin>,
    /// Its image, if it is a disk, is named by xl's entry and not by the options.
    pub(super) has_image_of_xl: bool,
}

/// What is in the place of a virtio disk.
///
/// # Errors
/// Its target describes another device, and that makes no sense.
pub(super) fn disk(config: &GuestConfig, disk: DiskEntry) -> Result<Found, String> {
    let DiskEntry { target, vdev: called, read_only, discard, server: _ } = disk;
    if is_device_file(&target) {
        let Entry { model, origin, .. } = device_file(&target).map_err(|error| {
            format!("The target of {called} describes a device, for its name ends in .toml: {error}")
        })?;
        return Ok(Found { called, model, options: Some(origin), has_image_of_xl: false });
    }
    let entry = config.disk(&called);
    let options = match entry.map(|entry| &entry.model) {
        Some(Model::Disk(options)) => options.clone(),
        _ => virtio_disk::Config::default(),
    };
    let model = Model::Disk(virtio_disk::Config { image: target, read_only, discard, ..options });
    Ok(Found { called, model, options: entry.map(|entry| entry.origin.clone()), has_image_of_xl: true })
}

/// The device `index` of those with this virtio device ID in `virtio=[]`.
///
/// # Errors
/// Nobody serves such devices, or not without an entry of their own.
pub(super) fn virtio(config: &GuestConfig, device_id: u32, index: usize) -> Result<Found, String> {
    let entry = config.nth(device_id, index);
    let model = entry.map(|entry| entry.model.clone()).or_else(|| Model::default_of(device_id)).ok_or_else(|| {
        let known: Vec<_> = Model::KINDS.iter().map(|(kind, id)| format!("{kind} (device{id:x})")).collect();
        format!("xen-virtio serves no device{device_id:x}; there are {}", known.join(", "))
    })?;
    let kind = model.kind();
    if entry.is_none() {
        model
            .check()
            .map_err(|error| format!("This {kind} needs an entry [[{kind}]] in the guest's TOML file: {error:#}"))?;
    }
    let options = entry.map(|entry| entry.origin.clone());
    Ok(Found { called: format!("{kind}{index}"), model, options, has_image_of_xl: false })
}

impl Found {
    /// Looks for the one thing on the host that xl looks for as well.
    ///
    /// # Errors
    /// It is a disk, and has no image.
    pub(super) fn look_for_image(&self) -> Result<(), String> {
        match &self.model {
            Model::Disk(config) => look_for(&config.image),
            _ => Ok(()),
        }
    }
}

fn look_for(image: &Path) -> Result<(), String> {
    let shown = image.display();
    if !image.is_absolute() {
        return Err(format!(
            "The image {shown} is no path from the root, and xen-virtio works in another place than xl"
        ));
    }
    match std::fs::metadata(image) {
        Ok(found) if found.is_file() || found.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(format!("The image {shown} is neither a regular file nor a block device")),
        Err(error) => Err(format!("The image {shown} cannot be used: {error}")),
    }
}
