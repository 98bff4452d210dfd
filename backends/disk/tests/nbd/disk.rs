//! A disk over NBD, and ways to use it.

use std::sync::Arc;

use testkit::driver::Descriptor;
use virtio_backend::{Backend, Kind, Owner, reach};
use virtio_disk::{Config, Disk, DiskError, EngineKind};

use crate::harness::{Builder, DATA, OK, Rig, SECTOR};

pub fn config(image: &str) -> Config {
    Config { image: image.into(), ..Config::default() }
}

/// The device, as a program that serves devices comes by it.
pub fn make(config: &Config) -> Result<Arc<dyn Backend>, DiskError> {
    let owner =
        Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/nonexistent".into() };
    let mut config = config.clone();
    let sockets = Disk::open(&mut config, &owner)?;
    Disk::make(&config, sockets, reach::directly::<Disk>(&config))
}

/// Why there is no disk, with all causes.
pub fn why_not(config: &Config) -> String {
    let error = make(config).err().expect("there should be no disk");
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// A lane of the device at work.
pub fn lane(device: &Arc<dyn Backend>, lane: usize) -> Rig {
    Builder::new(EngineKind::IoUring).lane(lane).start_device(Arc::clone(device))
}

pub fn rig(config: &Config) -> Rig {
    lane(&make(config).unwrap(), 0)
}

/// As [`Rig::read`], for what does not fit one buffer: up to 32 MiB in pieces of 256 KiB.
pub fn read_large(rig: &Rig, sector: u64, len: usize) -> Vec<u8> {
    rig.memory.write(DATA, &vec![0xaa; len]);
    let mut chain = vec![Descriptor::readable(rig.header(0, crate::harness::kind::IN, sector), 16)];
    chain.extend(pieces(len).map(|(at, len)| Descriptor::writable(DATA + at, len)));
    chain.push(Descriptor::writable(rig.status_byte(0), 1));
    rig.run(&chain);
    assert_eq!(rig.status(0), OK);
    rig.bytes(DATA, len)
}

/// As [`Rig::write`], likewise.
pub fn write_large(rig: &Rig, sector: u64, data: &[u8]) {
    rig.memory.write(DATA, data);
    let mut chain = vec![Descriptor::readable(rig.header(0, crate::harness::kind::OUT, sector), 16)];
    chain.extend(pieces(data.len()).map(|(at, len)| Descriptor::readable(DATA + at, len)));
    chain.push(Descriptor::writable(rig.status_byte(0), 1));
    rig.run(&chain);
    assert_eq!(rig.status(0), OK);
}

fn pieces(len: usize) -> impl Iterator<Item = (u64, u32)> {
    const PIECE: usize = 1 << 18;
    (0..len).step_by(PIECE).map(move |at| (at as u64, PIECE.min(len - at) as u32))
}

/// Offers requests of one sector each, without waiting: `at` 0 to 84, each with three descriptors and a buffer of its
/// own.
pub fn offer(rig: &Rig, at: u16, kind: u32, sector: u64) {
    let head = 3 * at;
    let data = buffer(at);
    let data = match kind {
        crate::harness::kind::IN => Descriptor::writable(data, SECTOR as u32),
        _ => Descriptor::readable(data, SECTOR as u32),
    };
    let header = Descriptor::readable(rig.header(head, kind, sector), 16);
    rig.offer(head, &[header, data, Descriptor::writable(rig.status_byte(head), 1)]);
}

pub fn buffer(at: u16) -> u64 {
    DATA + SECTOR as u64 * u64::from(at)
}

/// Waits until `so_many` requests have come back since the rig was made.
pub fn wait_used(rig: &Rig, so_many: u16) {
    rig.queue.wait_used(so_many);
}

/// Waits for something to become so.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    testkit::device::eventually(what, condition);
}
