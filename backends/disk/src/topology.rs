//! What a block device tells of itself beyond its size and its blocks: how it likes to be used, and what it can discard
//! (Documentation/ABI/stable/sysfs-block of Linux).
//!
//! All of it is advice to the driver, so what cannot be read is left at what fits any device.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, major, minor};

use crate::Geometry;

/// Below it, each block device has a directory by its numbers.
const DEVICES: &str = "/sys/dev/block";

/// Puts what the kernel tells of an open block device into its measures.
pub(crate) fn refine(device: impl AsFd, geometry: Geometry) -> Geometry {
    let Ok(stat) = fstat(device) else { return geometry };
    let directory = Path::new(DEVICES).join(format!("{}:{}", major(stat.st_rdev), minor(stat.st_rdev)));
    refined(&directory, geometry)
}

fn refined(directory: &Path, geometry: Geometry) -> Geometry {
    // A partition is a directory in that of its disk, which has the queue.
    let queue = [directory.join("queue"), directory.join("..").join("queue")].into_iter().find(|queue| queue.is_dir());
    let limit = |name: &str| number(queue.as_ref()?.join(name));
    let or_u32 = |told: Option<u64>, other| told.and_then(|told| u32::try_from(told).ok()).unwrap_or(other);
    let max_discard = limit("discard_max_bytes").unwrap_or(geometry.max_discard);
    let granularity = limit("discard_granularity").filter(|granularity| *granularity > 0);
    Geometry {
        optimal_io_size: or_u32(limit("optimal_io_size"), geometry.optimal_io_size),
        // Of a device that cannot be aligned to at all, -1.
        alignment_offset: or_u32(number(directory.join("alignment_offset")), geometry.alignment_offset),
        discard_granularity: if max_discard == 0 { 0 } else { or_u32(granularity, geometry.discard_granularity) },
        max_discard,
        ..geometry
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
