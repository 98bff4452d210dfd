//! The one thing on the host that xl looks for as well: a disk's image.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::model::Model;

/// Looks for a disk's image.
///
/// # Errors
/// It is a disk, and has no image.
pub(super) fn look_for(model: &Model) -> Result<(), String> {
    match model {
        // To look for an export would be to take a connection from who uses it.
        Model::Disk(config) if !virtio_disk::nbd::Address::is_meant(&config.image) => look_at(&config.image),
        _ => Ok(()),
    }
}

fn look_at(image: &Path) -> Result<(), String> {
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
