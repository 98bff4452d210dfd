//! What xen-virtio serves, as the broker describes it to a worker: checked, and free of the toolstack's spelling.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A device of a guest, and where the guest finds it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Which of the guest's devices.
    pub id: DeviceId,
    /// Guest-physical address of its registers, [`WINDOW_BYTES`] from there.
    pub base: u64,
    /// Its interrupt as Xen counts them: shared peripheral interrupts start at 32.
    pub irq: u32,
    /// What it is.
    pub model: Model,
}

/// The size of a virtio-mmio window under libxl (`VIRTIO_MMIO_DEV_SIZE` in libxl_arm.c).
pub const WINDOW_BYTES: u64 = 0x200;

/// A device's name, unique within its guest.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceId {
    /// Under which of the toolstack's protocols it came.
    pub class: Class,
    /// Its number there.
    pub number: u32,
}

/// A protocol of the toolstack for a kind of devices.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// libxl's `disk=[... specification=virtio ...]`.
    VirtioDisk,
}

impl Class {
    /// The directory below `backend` that holds its devices.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::VirtioDisk => "virtio_disk",
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.class.directory(), self.number)
    }
}

/// What a device is, with what its backend must know.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// A block device over the image whose descriptor comes with this.
    Disk(Disk),
}

impl Model {
    /// What it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
        }
    }

    /// What the toolstack calls it.
    pub fn name(&self) -> &str {
        match self {
            Self::Disk(disk) => &disk.vdev,
        }
    }
}

/// A disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// What the toolstack calls it: `xvda`.
    pub vdev: String,
    /// How it is served.
    pub config: virtio_disk::Config,
}

/// Devices for tests.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    pub(crate) fn disk(vdev: &str) -> Device {
        Device {
            id: DeviceId { class: Class::VirtioDisk, number: 51712 },
            base: 0x0200_0000,
            irq: 33,
            model: Model::Disk(Disk { vdev: vdev.into(), config: virtio_disk::Config::default() }),
        }
    }
}
