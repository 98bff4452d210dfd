//! What is read and written: an image, and disks of ours in this process that have it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use virtio_backend::{Backend, Kind, Owner, reach};
use virtio_disk::{Config, Disk};

use crate::guest::BLOCK;

/// Makes an image of which each block begins with its number, and leaves it in the page cache.
///
/// # Errors
/// There is no room for it.
pub fn make_image(folder: &Path, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.img"));
    let failed = || format!("Cannot make an image of {} MiB at {}", bytes >> 20, path.display());
    let file = File::create(&path).with_context(failed)?;
    let mut file = BufWriter::new(file);
    let mut block = vec![0; BLOCK];
    for number in 0..bytes / BLOCK as u64 {
        block.splice(..8, number.to_le_bytes());
        file.write_all(&block).with_context(failed)?;
    }
    let file = file.into_inner().with_context(failed)?;
    // What is written back later is not measured.
    file.sync_all().with_context(failed)?;
    Ok(path)
}

/// A disk of ours that reads an image, as any number of them may.
///
/// # Errors
/// The image is not there.
pub fn disk(image: &Path) -> Result<Arc<dyn Backend>> {
    let mut config = Config { image: image.to_owned(), read_only: true, ..Config::default() };
    let name = || "bench".to_owned();
    let owner = Owner { guest: name(), identity: name(), index: 0, directory: std::env::temp_dir(), vcpus: 1 };
    let descriptors = Disk::open(&mut config, &owner)?;
    Ok(Disk::make(&config, descriptors, reach::directly::<Disk>(&config))?)
}
