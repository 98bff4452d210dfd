//! What xen-virtio serves, as the broker describes it to a worker: checked, and free of the toolstack's spelling.
//!
//! The kinds of device are listed here, and nowhere else: a new one is a line.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Deserializer, Serialize};
use virtio_backend::{Backend, Kind, Owner, Reach, reach};

/// A device of a guest, and where the guest finds it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Which of the guest's devices.
    pub id: DeviceId,
    /// Where the guest finds it.
    pub place: Place,
    /// By which way the guest's memory is reached for it.
    pub grants: Grants,
    /// What people call it, unique within the guest: `xvda`, `net0`.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// What it is.
    pub model: Model,
}

/// Where a guest finds a device.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Guest-physical address of its registers, [`WINDOW_BYTES`] from there.
    pub base: u64,
    /// Its interrupt as Xen counts them: shared peripheral interrupts start at 32.
    pub irq: u32,
}

/// By which way a guest's memory is reached for a device. Each address that its driver names says whether it is a grant
/// or a frame of the guest; this says which of them are believed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grants {
    /// Frames alone, by foreign mapping: whatever page of the guest its driver names. Xen must allow it, as it allows Dom0.
    #[default]
    Never,
    /// Frames or grants: the guest's kernel decides.
    Allowed,
    /// Grants alone: the pages that the guest gave away for this one purpose. No foreign mapping is ever tried, so Xen
    /// need not allow any; an address that is no grant is the guest's fault.
    Only,
}

/// The size of a virtio-mmio window under libxl (`VIRTIO_MMIO_DEV_SIZE` in libxl_arm.c).
pub const WINDOW_BYTES: u64 = 0x200;

/// The interrupts a guest can have: shared ones, of the GIC (Arm GIC architecture, INTIDs 32 to 1019).
pub const SPIS: RangeInclusive<u32> = 32..=1019;

/// A device's name, unique within its guest.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceId {
    /// Under which of the toolstack's protocols it came.
    pub class: Class,
    /// Its number there.
    pub number: u32,
}

/// A way in which devices are asked for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// libxl's `disk=[... specification=virtio ...]`.
    VirtioDisk,
    /// libxl's `virtio=[...]` (Xen 4.18 and later).
    Virtio,
    /// An entry of the file given to `serve --static`.
    Static,
}

impl Class {
    /// The directory below `backend` that holds its devices.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::VirtioDisk => "virtio_disk",
            Self::Virtio => "virtio",
            Self::Static => "static",
        }
    }

    /// Whether the guest is kept from running until its device is there: libxl does so for disks, and for nothing else.
    pub const fn is_waited_for(self) -> bool {
        matches!(self, Self::VirtioDisk)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.class.directory(), self.number)
    }
}

/// Makes the enum of all kinds of [`Kind`], each with its configuration, and the ways from it to its device.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident: $device:ty,)+) => {
        /// What a device is, with all its backend must know.
        #[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Model {
            $($(#[$doc])* $variant(<$device as Kind>::Config),)+
        }

        impl Model {
            /// The kinds, in a word each, and the virtio device IDs of those that have one.
            pub const KINDS: &[(&str, Option<u32>)] = &[$((<$device>::NAME, <$device>::DEVICE_ID),)+];

            /// What an operator wrote of a device of this kind; `None`: there is no such kind.
            pub fn parse<'de, D: Deserializer<'de>>(kind: &str, keys: D) -> Option<Result<Self, D::Error>> {
                $(if kind == <$device>::NAME {
                    return Some(Deserialize::deserialize(keys).map(Self::$variant));
                })+
                None
            }

            /// A device of which nothing is written; `None`: none of this virtio device ID is served.
            pub fn default_of(device_id: u32) -> Option<Self> {
                $(if Some(device_id) == <$device>::DEVICE_ID {
                    return Some(Self::$variant(Default::default()));
                })+
                None
            }

            /// What it is, in a word.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => <$device>::NAME,)+ }
            }

            /// Its virtio device ID (virtio 1.2 §5).
            pub fn device_id(&self) -> u32 {
                match self { $(Self::$variant(config) => <$device>::device_id(config),)+ }
            }

            /// What it is called, before its number.
            pub fn title(&self) -> String {
                match self { $(Self::$variant(config) => <$device>::title(config),)+ }
            }

            /// Checks what can be checked without looking at the host.
            ///
            /// # Errors
            /// No host could serve this.
            pub fn check(&self) -> anyhow::Result<()> {
                match self { $(Self::$variant(config) => Ok(<$device>::check(config)?),)+ }
            }

            /// What of the host it takes for itself alone, in words.
            pub fn exclusive(&self) -> Vec<String> {
                match self { $(Self::$variant(config) => <$device>::exclusive(config),)+ }
            }

            /// The host's end of the device, in words.
            pub fn host_end(&self) -> String {
                match self { $(Self::$variant(config) => <$device>::host_end(config),)+ }
            }

            /// Opens what the device needs of the host; may block.
            ///
            /// # Errors
            /// The host does not have it or does not give it.
            pub fn open(&mut self, owner: &Owner) -> anyhow::Result<Vec<OwnedFd>> {
                match self { $(Self::$variant(config) => Ok(<$device>::open(config, owner)?),)+ }
            }

            /// Makes the device, of the descriptors that [`open`](Self::open) gave. What it connects to later it asks of
            /// `reach`.
            ///
            /// # Errors
            /// They are others.
            pub fn make(
                &self,
                descriptors: Vec<OwnedFd>,
                reach: Arc<dyn Reach>,
            ) -> anyhow::Result<Arc<dyn Backend>> {
                let made = match self {
                    $(Self::$variant(config) => {
                        <$device>::make(config, descriptors, reach).map_err(anyhow::Error::from)
                    })+
                };
                made.with_context(|| format!("No {} can be made of this", self.kind()))
            }

            /// Connects, for a device that was made, to what its configuration names by this number; may block.
            ///
            /// # Errors
            /// Nobody is there, or the host does not allow it.
            pub fn reach(&self, number: u32) -> io::Result<OwnedFd> {
                match self { $(Self::$variant(config) => <$device>::reach(config, number),)+ }
            }

            /// [`reach`](Self::reach), for a device of this process.
            pub fn reach_directly(&self) -> Arc<dyn Reach> {
                match self { $(Self::$variant(config) => reach::directly::<$device>(config),)+ }
            }

            /// Takes away what [`open`](Self::open) left on the host; may block.
            pub fn close(&self, owner: &Owner) {
                match self { $(Self::$variant(config) => <$device>::close(config, owner),)+ }
            }
        }
    };
}

kinds! {
    /// A block device.
    Disk: virtio_disk::Disk,
    /// A network card.
    Net: virtio_net::Net,
    /// A console with one port or several.
    Console: virtio_console::Console,
    /// A source of entropy.
    Rng: virtio_rng::Rng,
    /// Sockets between guest and host.
    Vsock: virtio_vsock::Vsock,
    /// A device whose backend is another program.
    VhostUser: virtio_vhost_user::VhostUser,
}

impl Model {
    /// The kinds that a virtio device ID names.
    pub fn kinds_with_id() -> impl Iterator<Item = (&'static str, u32)> {
        Self::KINDS.iter().filter_map(|&(kind, id)| Some((kind, id?)))
    }
}

/// Devices for tests.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    pub(crate) fn disk(vdev: &str) -> Device {
        let owner = Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/run".into() };
        Device {
            id: DeviceId { class: Class::VirtioDisk, number: 51712 },
            place: Place { base: 0x0200_0000, irq: 33 },
            grants: Grants::Never,
            name: vdev.into(),
            owner,
            model: Model::Disk(virtio_disk::Config::default()),
        }
    }
}
