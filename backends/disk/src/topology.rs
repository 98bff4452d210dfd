//! What a block device tells of itself beyond its size and its blocks: how it likes to be used, and what it can discard
//! (Documentation/ABI/stable/sysfs-block of Linux).
//!
//! All of it is advice to the driver, so what cannot be read is left at what fits any device. It is read where the device is
//! opened: where it is served there may be no sysfs.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, major, minor};
use serde::{Deserialize, Serialize};

use crate::Geometry;

/// Below it, each block device has a directory by its numbers.
const DEVICES: &str = "/sys/dev/block";

/// See the module. What is not told is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// The size of transfers that it likes best, in bytes.
    pub optimal_io_size: Option<u32>,
    /// Where its first physical block starts that is whole, in bytes.
    pub alignment_offset: Option<u32>,
    /// The pieces in which it discards, in bytes.
    pub discard_granularity: Option<u32>,
    /// The most that one discard gives back, in bytes; 0 if it cannot.
    pub max_discard: Option<u64>,
}

impl Topology {
    /// What the kernel tells of an open block device. Takes a look at sysfs.
    pub(crate) fn of(device: impl AsFd) -> Self {
        let Ok(stat) = fstat(device) else { return Self::default() };
        let directory = format!("{}:{}", major(stat.st_rdev), minor(stat.st_rdev));
        Self::told_in(&Path::new(DEVICES).join(directory))
    }

    fn told_in(directory: &Path) -> Self {
        // A partition is a directory in that of its disk, which has the queue.
        let queues = [directory.join("queue"), directory.join("..").join("queue")];
        let queue = queues.into_iter().find(|queue| queue.is_dir());
        let limit = |name: &str| number(queue.as_ref()?.join(name));
        let small = |told: Option<u64>| told.and_then(|told| u32::try_from(told).ok());
        Self {
            optimal_io_size: small(limit("optimal_io_size")),
            // Of a device that cannot be aligned to at all, -1.
            alignment_offset: small(number(directory.join("alignment_offset"))),
            discard_granularity: small(limit("discard_granularity")).filter(|granularity| *granularity > 0),
            max_discard: limit("discard_max_bytes"),
        }
    }

    /// Puts it into a device's measures.
    pub(crate) fn refine(self, geometry: Geometry) -> Geometry {
        let max_discard = self.max_discard.unwrap_or(geometry.max_discard);
        let granularity = self.discard_granularity.unwrap_or(geometry.discard_granularity);
        Geometry {
            optimal_io_size: self.optimal_io_size.unwrap_or(geometry.optimal_io_size),
            alignment_offset: self.alignment_offset.unwrap_or(geometry.alignment_offset),
            discard_granularity: if max_discard == 0 { 0 } else { granularity },
            max_discard,
            ..geometry
        }
    }
}

fn number(file: PathBuf) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Geometry = Geometry {
        size: 1 << 20,
        block_size: 512,
        physical_block_size: 4096,
        optimal_io_size: 0,
        alignment_offset: 0,
        discard_granularity: 4096,
        max_discard: u64::MAX,
        direct_alignment: None,
        read_only: false,
        max_queues: 1,
    };

    fn refined(directory: &Path, geometry: Geometry) -> Geometry {
        Topology::told_in(directory).refine(geometry)
    }

    /// A directory as sysfs has one for a disk with a partition.
    fn device(files: &[(&str, &str)]) -> tempfile::TempDir {
        let device = tempfile::tempdir().unwrap();
        for directory in ["queue", "part"] {
            fs::create_dir(device.path().join(directory)).unwrap();
        }
        for (file, contents) in files {
            fs::write(device.path().join(file), contents).unwrap();
        }
        device
    }

    #[test]
    fn a_disk_and_its_partition_are_as_the_kernel_says() {
        let device = device(&[
            ("queue/optimal_io_size", "65536\n"),
            ("queue/discard_granularity", "8192\n"),
            ("queue/discard_max_bytes", "1048576\n"),
            ("alignment_offset", "0\n"),
            ("part/alignment_offset", "3584\n"),
        ]);

        let disk = Geometry { optimal_io_size: 65536, discard_granularity: 8192, max_discard: 1 << 20, ..PLAIN };
        assert_eq!(refined(device.path(), PLAIN), disk);
        assert_eq!(refined(&device.path().join("part"), PLAIN), Geometry { alignment_offset: 3584, ..disk });
    }

    #[test]
    fn a_device_that_cannot_discard_says_so() {
        let device = device(&[("queue/discard_max_bytes", "0\n"), ("queue/discard_granularity", "512\n")]);

        assert_eq!(refined(device.path(), PLAIN).discard_granularity, 0);
    }

    #[test]
    fn what_is_not_told_or_makes_no_sense_changes_nothing() {
        for contents in ["", "many", "-1", "99999999999999999999999"] {
            let files =
                ["queue/optimal_io_size", "queue/discard_granularity", "queue/discard_max_bytes", "alignment_offset"];
            let device = device(&files.map(|file| (file, contents)));
            assert_eq!(refined(device.path(), PLAIN), PLAIN, "{contents:?}");
        }
        assert_eq!(refined(Path::new("/nonexistent"), PLAIN), PLAIN);
    }
}
