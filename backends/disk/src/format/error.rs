//! Why an image in a format cannot be served.

use std::io;

use super::header::HeaderError;
use super::layout::LayoutError;

/// Why an image in a format cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Its header is not one that can be served.
    #[error("The image {image} cannot be served as qcow2")]
    Header {
        /// The image's name.
        image: String,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// Its tables contradict each other.
    #[error(
        "The image {image} is damaged; look at it with `qemu-img check`, and mend a copy of it with `qemu-img check -r all`"
    )]
    Layout {
        /// The image's name.
        image: String,
        /// What is wrong with them.
        #[source]
        source: LayoutError,
    },
    /// The header names a backing file, and the configuration none.
    #[error(
        "The image {image} names a backing file, {named:?}, which is not opened for that; if the guest may read it, say \
         so: backing = [{{ image = \"/path/of/it\", format = \"qcow2\" }}], or format = \"raw\""
    )]
    BackingUnnamed {
        /// The image's name.
        image: String,
        /// What its header says.
        named: String,
    },
    /// The configuration names a backing file, and the header none.
    #[error(
        "The image {image} has no backing file, and the configuration names {named} for it; take that out of backing"
    )]
    BackingUnused {
        /// The image's name.
        image: String,
        /// What the configuration says.
        named: String,
    },
    /// The host cannot read it, or imago does not accept it.
    #[error("Cannot open the image {image}")]
    Open {
        /// The image's name.
        image: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}
