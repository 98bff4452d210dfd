//! The block driver of the `virtio_drivers` crate, on a disk in memory.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::io;
use std::sync::{Arc, Mutex};

use guest_memory::{Budget, MapCache};
use rig::{Line, RAM, RAM_LEN};
use testkit::driver::{GuestHal, MmioTransport, Register, Registers, Way};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Fault, Identity, Request, Ring, Wake, Worker};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::InterruptStatus;
use virtio_mmio::{DriverState, Transport};

const SECTORS: usize = 256;
const READ: u32 = 0;
const WRITE: u32 = 1;

/// The simplest disk: what is asked is done at once.
struct RamDisk {
    identity: Identity,
    sectors: Arc<Mutex<Vec<u8>>>,
}

struct RamDiskWorker(Arc<Mutex<Vec<u8>>>);

impl RamDisk {
    fn new() -> Self {
        let identity = Identity {
            device_id: 2,
            features: 0,
            queue_sizes: vec![16],
            lanes: std::iter::once(0..1).collect(),
            config_len: 8,
            max_chain_bytes: 1 << 20,
        };
        Self { identity, sectors: Arc::new(Mutex::new(vec![0; SECTORS * SECTOR_SIZE])) }
    }
}

impl Backend for RamDisk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&(SECTORS as u64).to_le_bytes()[offset..offset + data.len()]);
    }

    fn start(&self, _lane: usize, _features: u64) -> io::Result<Box<dyn Worker>> {
        Ok(Box::new(RamDiskWorker(self.sectors.clone())))
    }
}

impl Worker for RamDiskWorker {
    fn work(&mut self, _wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        rings[0].serve(|ring, request| {
            let written = execute(&request, &mut self.0.lock().unwrap());
            ring.push(request, written)
        })
    }
}

/// Returns how many bytes were written, the status included.
fn execute(request: &Request, sectors: &mut [u8]) -> usize {
    let mut header = [0; 16];
    request.readable.read(0, &mut header);
    let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
    let start = usize::try_from(u64::from_le_bytes(header[8..].try_into().unwrap())).unwrap() * SECTOR_SIZE;
    let data = request.writable.len() - 1;
    match kind {
        READ => assert_eq!(request.writable.write(0, &sectors[start..start + data]), data),
        WRITE => assert!(request.readable.read(16, &mut sectors[start..]) > 0),
        _ => panic!("the driver does not ask for {kind}"),
    }
    request.writable.write(data, &[0]);
    data + 1
}

struct Machine {
    registers: Arc<Transport>,
    disk: Arc<RamDisk>,
    line: Arc<Line>,
    cache: Arc<MapCache>,
}

impl Machine {
    fn boot(way: Way) -> Self {
        let sources = GuestHal::boot_by(way, FakeForeignMemory::new(&[(RAM, RAM_LEN)]), RAM, RAM + RAM_LEN);
        let cache = MapCache::new(sources, Budget::default());
        let (disk, line) = (Arc::new(RamDisk::new()), Arc::<Line>::default());
        let registers = Transport::new(disk.clone(), line.clone(), cache.clone(), "vda").unwrap();
        Self { registers, disk, line, cache }
    }

    fn probe(&self) -> VirtIOBlk<GuestHal, MmioTransport<Arc<Transport>>> {
        VirtIOBlk::new(MmioTransport(self.registers.clone())).unwrap()
    }
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..4096).map(|index| u8::try_from((index * 7 + seed) % 251).unwrap()).collect()
}

#[test]
fn a_disk_is_written_and_read_by_an_independent_driver() {
    for way in Way::ALL {
        let machine = Machine::boot(way);
        let mut disk = machine.probe();
        assert_eq!(disk.capacity(), SECTORS as u64);

        for block in (0..SECTORS).step_by(8) {
            disk.write_blocks(block, &pattern(block)).unwrap();
        }
        for block in (0..SECTORS).step_by(8) {
            let mut found = vec![0; 4096];
            disk.read_blocks(block, &mut found).unwrap();
            assert_eq!(found, pattern(block), "{way:?}: block {block}");
            assert_eq!(machine.disk.sectors.lock().unwrap()[block * SECTOR_SIZE..][..4096], found);
        }
        assert!(machine.line.raised() > 0);
        assert!(disk.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
    }
}

#[test]
fn a_driver_that_comes_again_finds_the_disk_as_it_left_it() {
    for way in Way::ALL {
        let machine = Machine::boot(way);
        machine.probe().write_blocks(8, &pattern(1)).unwrap();
        for _ in 0..50 {
            let mut found = vec![0; 4096];
            machine.probe().read_blocks(8, &mut found).unwrap();
            assert_eq!(found, pattern(1), "{way:?}");
        }
    }
}

#[test]
fn memory_that_is_invalidated_under_load_is_looked_up_again() {
    for way in Way::ALL {
        let machine = Machine::boot(way);
        let mut disk = machine.probe();
        for block in (0..SECTORS).step_by(8) {
            machine.cache.invalidate();
            machine.registers.release_memory();
            disk.write_blocks(block, &pattern(block)).unwrap();
            machine.cache.invalidate();
            let mut found = vec![0; 4096];
            disk.read_blocks(block, &mut found).unwrap();
            assert_eq!(found, pattern(block), "{way:?}");
        }
    }
}

#[test]
fn a_device_behind_the_driver_can_be_removed_and_stays_so() {
    for way in Way::ALL {
        let machine = Machine::boot(way);
        let disk = machine.probe();
        rig::Pending::from(machine.registers.stop()).wait();
        assert_eq!(machine.registers.state(), DriverState::Reset);
        assert_eq!(machine.registers.read(Register::QueueReady), 0);
        drop(disk);
    }
}
