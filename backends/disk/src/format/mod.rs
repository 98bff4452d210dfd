//! Images in a format of their own: qcow2, on its own or over backing files. The crate imago reads and writes them.
//!
//! - A format is what the operator wrote. Nothing looks into a file to find out what it is.
//! - Only named files are opened, by whoever opens a disk's image. What a header names is compared with what was
//!   written, and never followed.
//! - Nothing here runs where an image is opened. It is parsed where its guest's devices are, without rights: a broken
//!   image costs its guest.
//! - Headers and tables are checked here before imago sees them ([`header`], [`layout`]), what imago writes is kept in
//!   an order that survives a power cut ([`ordered`], [`refcounts`]), and should it panic, its image fails and nothing
//!   else ([`contents`]).

mod contents;
mod error;
mod header;
mod image;
mod layout;
mod ordered;
mod refcounts;
#[cfg(test)]
mod tests {
    mod order;
    mod power;
    mod tape;
}

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use error::FormatError;
pub(crate) use image::FormatImage;

/// What the bytes of an image file mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// They are the disk.
    #[default]
    Raw,
    /// QEMU's format, versions 2 and 3.
    Qcow2,
}

/// A file that holds what the image above it does not. It is only ever read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backing {
    /// A regular file or a block device.
    pub image: PathBuf,
    /// See [`Format`].
    #[serde(default)]
    pub format: Format,
}
