//! The file that the disk is, made and read without any code of ours: qcow2 by qemu-img.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use virtio_disk::Format;

/// With this `qemu-img check` says that some clusters are nobody's and nothing else is wrong. A process that is killed leaves
/// what it was about to use.
const LEAKED: i32 = 3;

/// What disks are made of.
pub(crate) struct Image {
    folder: TempDir,
    format: Format,
}

impl Image {
    /// One of so many bytes, all zeroes, in a folder of its own in `folder`.
    pub(crate) fn new(folder: &Path, format: Format, bytes: usize) -> Result<Self> {
        let image = Self { folder: TempDir::new_in(folder).context("Cannot make an image")?, format };
        let path = image.path("disk");
        match format {
            Format::Raw => File::create(path)?.set_len(bytes as u64).context("Cannot make an image")?,
            // Clusters as small as they may be, for tables to change all the time.
            Format::Qcow2 => {
                let size = bytes.to_string();
                qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", &path, &size], &[0])?;
            }
        }
        Ok(image)
    }

    /// As a broker opens it.
    pub(crate) fn open(&self) -> Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path("disk")).context("Cannot open the image")
    }

    /// What the guest would read of it; nobody may write to it now.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let (disk, plain) = (self.path("disk"), self.path("plain"));
        if self.format == Format::Raw {
            return fs::read(disk).context("Cannot read the image");
        }
        qemu_img(&["check", "-q", "-f", "qcow2", &disk], &[0, LEAKED])?;
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &disk, &plain], &[0])?;
        fs::read(plain).context("Cannot read the image")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// Runs qemu-img, which has to exit with one of these.
fn qemu_img(arguments: &[&str], codes: &[i32]) -> Result<()> {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.context("Cannot run qemu-img; it is in Debian's package qemu-utils")?;
    let is_fine = output.status.code().is_some_and(|code| codes.contains(&code));
    let said = [output.stdout, output.stderr].concat();
    ensure!(is_fine, "qemu-img {arguments:?}: {}, {}", output.status, String::from_utf8_lossy(&said));
    Ok(())
}
