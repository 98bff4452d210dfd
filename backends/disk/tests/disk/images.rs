//! Row E14: what may be a disk, what may not, and who may have it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use virtio_disk::{Access, Config, Disk, Image, ImageError, PlanError, Storage};

use crate::harness::{Builder, OK, SECTOR, kind, pattern, segment};
use crate::on_each_engine;

const READ_ONLY: Access = Access { read_only: true, direct: false };

fn folder_with_image(len: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, pattern(len, 2)).unwrap();
    (folder, path)
}

fn why_not(path: &Path) -> String {
    Image::open(path, READ_ONLY).unwrap_err().to_string()
}

#[test]
fn e14_what_is_no_disk_is_refused_by_name() {
    let (folder, _) = folder_with_image(SECTOR);
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();

    let refused = [
        (folder.path(), "is a directory"),
        (&fifo, "is a FIFO"),
        (&socket, "is a socket"),
        (Path::new("/dev/zero"), "is a character device"),
        (Path::new("/proc/self/mem"), "is a file of /proc"),
        (Path::new("/proc/self/status"), "is a file of /proc"),
        (Path::new("/sys/kernel/notes"), "is a file of /sys"),
    ];
    for (path, words) in refused {
        let error = why_not(path);
        assert!(error.contains(words) && error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn e14_an_image_behind_a_symbolic_link_is_the_image() {
    let (folder, path) = folder_with_image(4 * SECTOR);
    let link = folder.path().join("volume");
    symlink(&path, &link).unwrap();
    assert_eq!(Image::open(&link, READ_ONLY).unwrap().geometry().size, 4 * SECTOR as u64);

    fs::remove_file(&link).unwrap();
    symlink("/proc/self/mem", &link).unwrap();
    assert!(why_not(&link).contains("/proc"));
}

#[test]
fn e14_empty_and_odd_images_are_refused_with_what_to_do() {
    let (_folder, path) = folder_with_image(0);
    assert!(why_not(&path).contains("is empty"));
    fs::write(&path, [0; 1000]).unwrap();
    assert!(why_not(&path).contains("has 1000 bytes, not a multiple of 512"));
}

#[test]
fn e14_two_writers_of_an_image_are_refused_and_two_readers_are_not() {
    let (_folder, path) = folder_with_image(SECTOR);
    let writer = Image::open(&path, Access::default()).unwrap();
    for access in [Access::default(), READ_ONLY] {
        let error = Image::open(&path, access).unwrap_err();
        assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    }
    drop(writer);

    let _reader = Image::open(&path, READ_ONLY).unwrap();
    assert!(Image::open(&path, READ_ONLY).is_ok());
    assert!(matches!(Image::open(&path, Access::default()), Err(ImageError::InUse { .. })));
}

#[test]
fn e14_the_lock_lasts_as_long_as_a_copy_of_the_descriptor() {
    let (_folder, path) = folder_with_image(SECTOR);
    let copy = Image::open(&path, Access::default()).unwrap().into_file().try_clone().unwrap();
    assert!(matches!(Image::open(&path, Access::default()), Err(ImageError::InUse { .. })));
    drop(copy);
    assert!(Image::open(&path, Access::default()).is_ok());
}

#[test]
fn a_disk_to_write_needs_an_image_that_can_be_written() {
    let (_folder, path) = folder_with_image(SECTOR);
    let image = Image::from_file(File::open(&path).unwrap(), "disk.img").unwrap();
    let error = Disk::new(&Config::default(), image).err().unwrap();
    assert!(matches!(error, PlanError::ReadOnlyImage { .. }), "{error}");
}

/// A loop device over a file, detached at the end.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    pub fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            _ => {
                eprintln!("skipped: no loop device is to be had here");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

on_each_engine! {
    fn e14_a_block_device_is_a_disk(engine) {
        let (_folder, path) = folder_with_image(1 << 20);
        let Some(device) = LoopDevice::attach(&path) else { return };
        let image = Image::open(&device.0, Access::default()).unwrap();
        assert_eq!(image.geometry().size, 1 << 20);
        let rig = Builder::new(engine).start_over(image);

        assert_eq!(rig.write(5, &pattern(SECTOR, 9)), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(16, 8, 0)), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(32, 8, 1)), OK);
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(64, 64, 0)), OK);
        assert_eq!(rig.flush(), OK);

        assert_eq!(rig.read(5, 1).data, pattern(SECTOR, 9));
        assert_eq!(rig.read(16, 8).data, [0; 8 * SECTOR]);
        assert_eq!(rig.read(32, 8).data, [0; 8 * SECTOR]);
        assert_eq!(rig.read(200, 4).data, pattern(1 << 20, 2)[200 * SECTOR..204 * SECTOR]);
        drop(rig);
    }
}

#[test]
fn a_block_device_can_have_larger_blocks_than_its_own_and_no_smaller_ones() {
    let (_folder, path) = folder_with_image(1 << 20);
    let Some(device) = LoopDevice::attach(&path) else { return };
    let config = Config { block_size: Some(4096), ..Config::default() };
    let disk = Disk::new(&config, Image::open(&device.0, Access::default()).unwrap()).unwrap();
    assert_eq!(disk.plan().geometry.block_size, 4096);
    drop(disk);

    if Command::new("losetup").args(["--sector-size", "4096"]).arg(&device.0).status().unwrap().success() {
        let image = Image::open(&device.0, Access::default()).unwrap();
        let config = Config { block_size: Some(512), ..Config::default() };
        let error = Disk::new(&config, image).err().unwrap().to_string();
        assert!(error.contains("blocks of 4096 bytes and cannot have smaller ones"), "{error}");
    }
}

#[test]
fn e14_a_block_device_that_is_claimed_is_refused() {
    let (_folder, path) = folder_with_image(1 << 20);
    let Some(device) = LoopDevice::attach(&path) else { return };
    let first = Image::open(&device.0, Access::default()).unwrap();
    let error = Image::open(&device.0, Access::default()).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    drop(first);
}
