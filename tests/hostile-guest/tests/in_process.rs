//! The moves of a hostile guest, to devices in this process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test reports by panicking")]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guest_memory::{Budget, MapCache};
use hostile_guest::driver::Driver;
use hostile_guest::machine::MEMORY;
use hostile_guest::{Machine, moves};
use io_bus::{Device, Written};
use testkit::memory::FakeForeignMemory;
use virtio_backend::reach::directly;
use virtio_backend::{Backend, Kind, Owner};
use virtio_disk::Disk;
use virtio_mmio::{InterruptLine, Transport};
use virtio_rng::Rng;

const RAM: u64 = 0x4000_0000;
const WINDOW: u64 = 0x200_0000;

struct Line;

impl InterruptLine for Line {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}

struct InProcess {
    registers: Arc<Transport>,
    memory: FakeForeignMemory,
}

impl InProcess {
    fn new(backend: Arc<dyn Backend>) -> Self {
        let memory = FakeForeignMemory::new(&[(RAM, MEMORY as u64)]);
        let cache = MapCache::new(memory.clone(), Budget::default());
        let registers = Transport::new(backend, Arc::new(Line), cache, "hostile").unwrap();
        Self { registers, memory }
    }
}

impl Machine for InProcess {
    fn read(&self, offset: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.registers.as_ref().read(offset, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    fn write(&self, offset: u64, width: usize, value: u64) {
        if let Written::Later(deferral) = self.registers.as_ref().write(offset, &value.to_le_bytes()[..width]) {
            let (done, is_done) = std::sync::mpsc::channel();
            deferral.then(move || done.send(()).unwrap());
            is_done.recv().unwrap();
        }
    }

    fn window(&self) -> u64 {
        WINDOW
    }

    fn memory(&self) -> u64 {
        RAM
    }

    fn load(&self, at: u64, to: &mut [u8]) {
        self.memory.read(RAM + at, to);
    }

    fn store(&self, at: u64, from: &[u8]) {
        self.memory.write(RAM + at, from);
    }

    fn pause(&self) {
        thread::sleep(Duration::from_micros(100));
    }
}

fn every_move_is_survived(backend: Arc<dyn Backend>) {
    let machine = InProcess::new(backend);
    let driver = Driver::new(&machine);
    testkit::cases::each(
        moves::all(driver.device)
            .iter()
            .map(|hostile| (hostile.row, &hostile.name, hostile))
            .map(|(row, name, hostile)| Named(format!("{row} {name}"), hostile)),
        |Named(_, hostile)| hostile.make(&driver).unwrap(),
    );
}

struct Named<'a>(String, &'a moves::Move);

impl std::fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a device as the program does.
fn device<K: Kind>(mut config: K::Config) -> Arc<dyn Backend> {
    let owner = Owner {
        guest: "hostile".to_owned(),
        identity: "hostile".to_owned(),
        index: 0,
        vcpus: 1,
        directory: std::env::temp_dir(),
    };
    let descriptors: Vec<OwnedFd> = K::open(&mut config, &owner).unwrap();
    K::make(&config, descriptors, directly::<K>(&config)).unwrap()
}

#[test]
fn a_disk_survives_every_move() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    every_move_is_survived(device::<Disk>(virtio_disk::Config {
        image: image.path().to_owned(),
        ..Default::default()
    }));
}

#[test]
fn a_source_of_entropy_survives_every_move() {
    every_move_is_survived(device::<Rng>(virtio_rng::Config::default()));
}
