//! What a device is to be: the toolstack's word and the guest's configuration file, put together. One rule for `serve`,
//! which then opens the device, and for `check`, which does not.

use anyhow::{Context, anyhow};

use crate::config::{Entry, GuestConfig, Origin, device_file};
use crate::model::Model;
use crate::toolstack::libxl::DiskSpec;

/// What a device is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What it is.
    pub model: Model,
    /// What people call it, unique within the guest: `xvda`, `net0`.
    pub called: String,
    /// Where its options are written; nowhere if it has the defaults.
    pub options: Option<Origin>,
    /// It is a disk whose image the toolstack names, and not the options.
    pub has_toolstacks_image: bool,
}

impl Choice {
    /// What is in a disk's place: a disk, of which the toolstack says the image and whether it can be written, and the
    /// guest's file the rest; or the device that its target describes.
    ///
    /// # Errors
    /// The target describes another device, and cannot be used.
    pub fn of_disk(config: &GuestConfig, disk: DiskSpec) -> anyhow::Result<Self> {
        if let Some(file) = disk.other_device() {
            let entry = device_file(file).with_context(|| {
                format!("The target of {} describes a device, for its name ends in .toml", disk.vdev)
            })?;
            return Ok(Self { called: disk.vdev, ..Self::of_entry(&entry, 0) });
        }
        let entry = config.disk(&disk.vdev);
        let options = match entry.map(|entry| &entry.model) {
            Some(Model::Disk(options)) => options.clone(),
            _ => virtio_disk::Config::default(),
        };
        let DiskSpec { target, vdev, read_only, discard } = disk;
        let model = Model::Disk(virtio_disk::Config { image: target, read_only, discard, ..options });
        Ok(Self { model, called: vdev, options: entry.map(|entry| entry.origin.clone()), has_toolstacks_image: true })
    }

    /// The device `index` of those with this virtio device ID that the toolstack tells nothing else of.
    ///
    /// # Errors
    /// None is served, or not without an entry of its own.
    pub fn of_nth(config: &GuestConfig, device_id: u32, index: usize) -> anyhow::Result<Self> {
        if let Some(entry) = config.nth(device_id, index) {
            return Ok(Self::of_entry(entry, index));
        }
        let model = Model::default_of(device_id).ok_or_else(|| {
            let known: Vec<_> = Model::kinds_with_id().map(|(kind, id)| format!("{kind} (device{id:x})")).collect();
            let known = known.join(", ");
            anyhow!(
                "xen-virtio serves no device{device_id:x}; there are {known}, and others whose backend is another \
                 program, by an entry [[vhost-user]] in the guest's file"
            )
        })?;
        let kind = model.kind();
        model.check().with_context(|| format!("This {kind} needs an entry [[{kind}]] in the guest's file"))?;
        Ok(Self { called: format!("{kind}{index}"), model, options: None, has_toolstacks_image: false })
    }

    /// The device of an entry that says it all.
    pub fn of_entry(entry: &Entry, index: usize) -> Self {
        let Entry { model, origin, .. } = entry.clone();
        Self { called: format!("{}{index}", model.title()), model, options: Some(origin), has_toolstacks_image: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_nobody_serves_is_told_with_those_that_are() {
        let error = Choice::of_nth(&GuestConfig::default(), 26, 0).unwrap_err().to_string();

        assert!(
            error.contains("device1a") && error.contains("net (device1)") && error.contains("vsock (device13)"),
            "{error}"
        );
        assert!(error.contains("[[vhost-user]]"), "{error}");
    }

    #[test]
    fn a_device_that_has_no_defaults_needs_its_entry() {
        let error = Choice::of_nth(&GuestConfig::default(), 2, 0).unwrap_err().to_string();

        assert!(error.contains("needs an entry [[disk]]"), "{error}");
        assert_eq!(Choice::of_nth(&GuestConfig::default(), 4, 3).unwrap().called, "rng3");
    }
}
