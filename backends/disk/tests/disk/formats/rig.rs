//! Disks over images that `qemu-img` made, and what it says of them afterwards.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtio_backend::{Backend, Kind, Owner, reach};
use virtio_disk::{Backing, Config, Disk, DiskError, EngineKind, Format};

use crate::harness::{Builder, PATIENCE, Rig};

/// Runs each test on the pool and without it.
#[macro_export]
macro_rules! on_each_pool {
    ($(fn $name:ident($engine:ident) $body:block)+) => {
        $(mod $name {
            #[allow(unused_imports, reason = "not every test needs all")]
            use super::*;

            fn on($engine: virtio_disk::EngineKind) $body

            #[test]
            fn plain() {
                on(virtio_disk::EngineKind::Plain);
            }

            #[test]
            fn pool() {
                on(virtio_disk::EngineKind::IoUring);
            }
        })+
    };
}

/// Runs a tool of QEMU's. Panics with what it says if it fails.
pub fn run(tool: &str, arguments: &[&str]) -> String {
    let (code, said) = outcome(tool, arguments);
    assert_eq!(code, Some(0), "{tool} {arguments:?}: {said}");
    said
}

/// Runs a tool of QEMU's when no image of its is in use any more: a process that another test is about to start has
/// copies of this one's descriptors for a moment, and with them its locks.
fn outcome(tool: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = Command::new(tool).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{tool}: {error}; `make deps` installs it"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if !said.contains("Failed to lock byte") || Instant::now() > deadline {
            return (output.status.code(), said);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn qemu_img(arguments: &[&str]) -> String {
    run("qemu-img", arguments)
}

/// Makes a qcow2 image of `size` bytes with `options` (`cluster_size=4096`, ...).
pub fn create(path: &Path, size: u64, options: &str) {
    let (path, size) = (path.to_str().unwrap(), size.to_string());
    let options = if options.is_empty() { "compat=1.1" } else { options };
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, path, &size]);
}

/// QEMU finds no contradiction, and no cluster that nothing uses.
pub fn assert_clean(path: &Path) {
    qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
}

/// The disk's bytes as QEMU reads them.
pub fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("contents");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    qemu_img(&["convert", "-q", "-f", "qcow2", "-O", "raw", from, to]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

pub fn backing(image: &Path, format: Format) -> Backing {
    Backing { image: image.into(), format }
}

pub fn qcow2(image: &Path) -> Config {
    Config { image: image.into(), format: Format::Qcow2, ..Config::default() }
}

/// Opens and makes the disk as the program does, each half where it belongs.
pub fn make(config: &Config) -> Result<Arc<dyn Backend>, DiskError> {
    let owner =
        Owner { guest: "web".into(), identity: "web".into(), index: 0, directory: "/nonexistent".into(), vcpus: 1 };
    let mut config = config.clone();
    let descriptors = Disk::open(&mut config, &owner)?;
    Disk::make(&config, descriptors, reach::directly::<Disk>(&config))
}

/// Why there is no disk, as people see it.
pub fn why_not(config: &Config) -> String {
    let error = make(config).err().expect("the disk should be refused");
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        said += &format!(": {error}");
        source = error.source();
    }
    said
}

/// A folder with the images of a test.
pub struct Place(TempDir);

impl Place {
    /// In memory where the host has such a place: nothing here is about the medium, and there are many flushes.
    pub fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").or_else(|_there_is_none| tempfile::tempdir()).unwrap())
    }

    /// Where direct I/O is to be had.
    pub fn on_disk() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The image that the disk is over.
    pub fn image(&self) -> PathBuf {
        self.file("disk.qcow2")
    }

    /// A place with an image of `size` bytes, made with `options`.
    pub fn with_image(size: u64, options: &str) -> Self {
        let place = Self::new();
        create(&place.image(), size, options);
        place
    }

    pub fn config(&self) -> Config {
        qcow2(&self.image())
    }

    /// Its disk at work.
    pub fn start(&self, engine: EngineKind) -> Rig {
        serve(&self.config(), engine)
    }
}

/// A disk at work. Once it is dropped, the image is another's to open.
pub fn serve(config: &Config, engine: EngineKind) -> Rig {
    let disk = make(&Config { engine, ..config.clone() }).unwrap();
    Builder::new(engine).start_device(disk)
}
