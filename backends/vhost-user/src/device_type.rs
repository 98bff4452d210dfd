//! The types of virtio devices (virtio 1.2 §5) that another program can be the backend of, and what is known of each
//! before that program is asked.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_ZONED};
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_GPIO, VIRTIO_ID_GPU,
    VIRTIO_ID_I2C_ADAPTER, VIRTIO_ID_INPUT, VIRTIO_ID_IOMMU, VIRTIO_ID_MEM, VIRTIO_ID_NET, VIRTIO_ID_PMEM,
    VIRTIO_ID_RNG, VIRTIO_ID_SCMI, VIRTIO_ID_SCSI, VIRTIO_ID_SOUND, VIRTIO_ID_VSOCK,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU, VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_RSS,
    VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_VQ_NOTF_COAL,
};

/// A type of virtio device, by its ID. Written as a name or as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceType(u32);

impl DeviceType {
    /// The virtio device ID (virtio 1.2 §5).
    pub const fn id(self) -> u32 {
        self.0
    }

    /// The type with this virtio device ID.
    pub const fn of_id(id: u32) -> Self {
        Self(id)
    }

    pub(crate) fn profile(self) -> Profile {
        PROFILES.iter().find(|profile| profile.id == self.0).copied().unwrap_or(Profile { id: self.0, ..UNKNOWN })
    }

    /// Why no program can be the backend of it.
    pub(crate) fn obstacle(self) -> Option<&'static str> {
        OBSTACLES.iter().find(|(id, _)| *id == self.0).map(|(_, why)| *why)
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.profile().name {
            "" => write!(f, "device{}-", self.0),
            name => f.write_str(name),
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "the type of a device: a name such as \"fs\", or a virtio device ID")]
enum Written {
    Id(u32),
    Name(String),
}

impl<'de> Deserialize<'de> for DeviceType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Id(id) => Ok(Self(id)),
            Written::Name(name) => {
                let known = PROFILES.iter().find(|profile| profile.name == name);
                known.map(|profile| Self(profile.id)).ok_or_else(|| {
                    let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
                    let names = names.join(", ");
                    D::Error::custom(format!("device = {name:?} is none of {names}; others are written by number"))
                })
            }
        }
    }
}

impl Serialize for DeviceType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// What is known of a type of device beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) id: u32,
    /// What operators call it; empty if it has no name here.
    pub(crate) name: &'static str,
    /// How many queues it has unless its backend has fewer; 0 if that is not known.
    pub(crate) queues: u16,
    /// Entries of each queue.
    pub(crate) queue_size: u16,
    /// Bytes of configuration space.
    pub(crate) config_size: u16,
    /// Bytes of memory for what is in flight in a queue.
    pub(crate) queue_memory: u64,
    /// Features that need what does not come through the queues and configuration space of this profile.
    pub(crate) withheld: u64,
    /// Features that speak of configuration space, and mean nothing where the backend has none.
    pub(crate) told_in_config: u64,
    /// Where configuration space tells how many queues there are.
    pub(crate) queue_count: Option<QueueCount>,
    /// Where it tells, in four bytes, how many buffers a request may have beside its header and its status.
    pub(crate) most_segments: Option<usize>,
    /// The protocol's count of queues means these queues; it does not where a backend counts pairs.
    pub(crate) counts_queues: bool,
}

/// A field of configuration space that tells how many queues there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueCount {
    /// Where it is, in bytes.
    pub(crate) at: usize,
    /// How many bytes it has.
    pub(crate) len: usize,
    /// Queues that it leaves out.
    pub(crate) others: u16,
}

const MIB: u64 = 1 << 20;

const UNKNOWN: Profile = Profile {
    id: 0,
    name: "",
    queues: 0,
    queue_size: 128,
    config_size: 0,
    queue_memory: 8 * MIB,
    withheld: 0,
    told_in_config: 0,
    queue_count: None,
    most_segments: None,
    counts_queues: true,
};

/// A device with few and small requests.
const SMALL: Profile = Profile { queue_size: 64, queue_memory: MIB, ..UNKNOWN };

const fn bits<const N: usize>(features: [u32; N]) -> u64 {
    let (mut set, mut index) = (0, 0);
    while index < N {
        #[expect(clippy::indexing_slicing, reason = "below the array's length, and evaluated by the compiler")]
        let feature = features[index];
        set |= 1 << feature;
        index += 1;
    }
    set
}

/// VIRTIO_FS_F_NOTIFICATION (§5.11.3), which adds a queue before the others.
const FS_NOTIFICATION: u32 = 0;

/// VIRTIO_CONSOLE_F_SIZE, _MULTIPORT and _EMERG_WRITE (§5.3.3).
const CONSOLE_SIZE: u32 = 0;
const CONSOLE_MULTIPORT: u32 = 1;
const CONSOLE_EMERG_WRITE: u32 = 2;

const PROFILES: &[Profile] = &[
    Profile {
        id: VIRTIO_ID_NET,
        name: "net",
        queues: 2,
        queue_size: 256,
        config_size: 12,
        // The control queue is the VMM's own affair with vhost-user, and nobody's here; with it goes all it controls.
        withheld: bits([
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_RX_EXTRA,
            VIRTIO_NET_F_CTRL_VLAN,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
            VIRTIO_NET_F_MQ,
            VIRTIO_NET_F_RSS,
            VIRTIO_NET_F_HASH_REPORT,
            VIRTIO_NET_F_NOTF_COAL,
            VIRTIO_NET_F_VQ_NOTF_COAL,
            VIRTIO_NET_F_SPEED_DUPLEX,
        ]),
        told_in_config: bits([VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU]),
        counts_queues: false,
        ..UNKNOWN
    },
    Profile {
        id: VIRTIO_ID_BLOCK,
        name: "block",
        queues: 1,
        queue_size: 256,
        config_size: 60,
        queue_memory: 16 * MIB,
        // Their fields lie behind those that every backend knows.
        withheld: bits([VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_ZONED]),
        queue_count: Some(QueueCount { at: 34, len: 2, others: 0 }),
        most_segments: Some(12),
        ..UNKNOWN
    },
    Profile {
        id: VIRTIO_ID_CONSOLE,
        name: "console",
        queues: 4,
        config_size: 12,
        told_in_config: bits([CONSOLE_SIZE, CONSOLE_MULTIPORT, CONSOLE_EMERG_WRITE]),
        ..SMALL
    },
    Profile { id: VIRTIO_ID_RNG, name: "rng", queues: 1, ..SMALL },
    Profile {
        id: VIRTIO_ID_SCSI,
        name: "scsi",
        queues: 3,
        config_size: 36,
        queue_count: Some(QueueCount { at: 0, len: 4, others: 2 }),
        most_segments: Some(4),
        ..UNKNOWN
    },
    Profile { id: VIRTIO_ID_VSOCK, name: "vsock", queues: 3, config_size: 8, ..UNKNOWN },
    Profile { id: VIRTIO_ID_SOUND, name: "sound", queues: 4, config_size: 12, ..UNKNOWN },
    Profile {
        id: VIRTIO_ID_FS,
        name: "fs",
        queues: 2,
        config_size: FS_CONFIG_SIZE,
        queue_memory: 32 * MIB,
        withheld: bits([FS_NOTIFICATION]),
        queue_count: Some(QueueCount { at: FS_TAG_SIZE, len: 4, others: 1 }),
        ..UNKNOWN
    },
    Profile { id: VIRTIO_ID_SCMI, name: "scmi", queues: 2, ..SMALL },
    Profile { id: VIRTIO_ID_I2C_ADAPTER, name: "i2c", queues: 1, ..SMALL },
    Profile { id: VIRTIO_ID_GPIO, name: "gpio", queues: 2, config_size: 8, ..SMALL },
];

/// Bytes of a file system's tag, the first field of its configuration space (§5.11.4).
pub(crate) const FS_TAG_SIZE: usize = 36;

/// Bytes of a file system's configuration space: the tag and the number of request queues.
const FS_CONFIG_SIZE: u16 = 40;

const BY_ADDRESS: &str = "its requests name the guest's memory by address, of which a backend has none";

const OBSTACLES: &[(u32, &str)] = &[
    (0, "it is the mark of a place where no device is"),
    (VIRTIO_ID_BALLOON, BY_ADDRESS),
    (VIRTIO_ID_GPU, BY_ADDRESS),
    (VIRTIO_ID_IOMMU, BY_ADDRESS),
    (VIRTIO_ID_MEM, BY_ADDRESS),
    (VIRTIO_ID_PMEM, "it is memory, which a backend cannot put into the guest's"),
    (VIRTIO_ID_INPUT, "its configuration space answers questions, which the guest cannot wait for"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct Entry {
        device: DeviceType,
    }

    fn parse(value: &str) -> Result<u32, String> {
        let parsed = toml::from_str::<Entry>(&format!("device = {value}"));
        parsed.map(|entry| entry.device.id()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_numbers_mean_the_same() {
        for (name, id) in [("net", 1), ("block", 2), ("rng", 4), ("fs", 26), ("i2c", 34), ("gpio", 41)] {
            assert_eq!(parse(&format!("'{name}'")), Ok(id));
            assert_eq!(parse(&id.to_string()), Ok(id));
            assert_eq!(DeviceType::of_id(id).to_string(), name);
        }
    }

    #[test]
    fn a_number_without_a_name_is_taken_and_can_be_told_from_the_devices_own_number() {
        assert_eq!(parse("63"), Ok(63));
        assert_eq!(format!("{}{}", DeviceType::of_id(63), 0), "device63-0");
    }

    #[test]
    fn h10_what_is_no_type_is_refused_with_those_that_are() {
        for value in ["'disk'", "''"] {
            let error = parse(value).unwrap_err();
            assert!(error.contains("block") && error.contains("by number"), "{error}");
        }
        for value in ["-1", "true", "[1]", "4294967296"] {
            let error = parse(value).unwrap_err();
            assert!(error.contains("a name such as"), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read_back() {
        let entry = Entry { device: DeviceType::of_id(26) };
        assert_eq!(toml::from_str::<Entry>(&toml::to_string(&entry).unwrap()).unwrap(), entry);
    }

    #[test]
    fn every_name_and_every_number_stands_for_one_type() {
        for (index, profile) in PROFILES.iter().enumerate() {
            let others = PROFILES.iter().skip(index + 1);
            assert!(others.clone().all(|other| other.name != profile.name && other.id != profile.id), "{profile:?}");
            assert!(DeviceType::of_id(profile.id).obstacle().is_none(), "{profile:?}");
            let fits = |count: QueueCount| count.at + count.len <= usize::from(profile.config_size);
            assert!(profile.queue_count.is_none_or(fits), "{profile:?}");
        }
    }
}
