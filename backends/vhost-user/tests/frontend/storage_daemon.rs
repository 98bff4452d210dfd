//! QEMU's storage daemon as the backend: a backend that none of us wrote, and none that would lie.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use guest_memory::{Budget, MapCache};
use tempfile::TempDir;
use testkit::device::eventually;
use testkit::driver::{Descriptor, GuestHal, MmioTransport};
use testkit::memory::FakeForeignMemory;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_mmio::Transport;

use crate::harness::{BUFFERS, Guest, NoLine, RAM, RAM_LEN, UNTOUCHED, config, make, pattern};

const BLOCK: u32 = 2;
const DISK: usize = 8 << 20;
const SECTOR: usize = 512;

/// What the daemon is started for: a disk at a socket.
struct Daemon {
    folder: TempDir,
    child: Child,
    queues: u16,
}

impl Daemon {
    fn start(queues: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("disk.img"), pattern(DISK, 1)).unwrap();
        let child = Self::run(folder.path(), queues).expect("`make deps` installs qemu-storage-daemon");
        Self { folder, child, queues }
    }

    fn run(folder: &Path, queues: u16) -> std::io::Result<Child> {
        let (image, socket) = (folder.join("disk.img"), folder.join("disk.sock"));
        let (image, socket) = (image.display(), socket.display());
        Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={image}"))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues={queues},\
                 addr.type=unix,addr.path={socket}"
            ))
            .stdin(Stdio::null())
            .spawn()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("disk.sock")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::remove_file(self.socket()).unwrap();
    }

    fn start_again(&mut self) {
        self.child = Self::run(self.folder.path(), self.queues).unwrap();
    }

    fn on_disk(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("disk.img")).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Driver = VirtIOBlk<GuestHal, MmioTransport<Arc<Transport>>>;

/// A guest that has found its disk.
fn boot(daemon: &Daemon) -> (Driver, Arc<Transport>) {
    let device = make(config(BLOCK, &daemon.socket())).unwrap();
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    GuestHal::boot(memory.clone(), RAM, RAM + RAM_LEN);
    let cache = MapCache::new(memory, Budget::default());
    let transport = Transport::new(device, Arc::new(NoLine), cache, "disk").unwrap();
    (VirtIOBlk::new(MmioTransport(Arc::clone(&transport))).unwrap(), transport)
}

#[test]
fn a_foreign_driver_and_a_foreign_backend_read_and_write_through_us() {
    let daemon = Daemon::start(1);
    let (mut driver, transport) = boot(&daemon);
    assert_eq!((driver.capacity() as usize, driver.readonly()), (DISK / SECTOR, false));

    let data = pattern(64 * SECTOR, 42);
    driver.write_blocks(40, &data).unwrap();
    driver.flush().unwrap();
    let mut read = vec![0; 66 * SECTOR];
    driver.read_blocks(39, &mut read).unwrap();

    let mut expected = pattern(DISK, 1);
    expected[40 * SECTOR..104 * SECTOR].copy_from_slice(&data);
    assert_eq!(read, expected[39 * SECTOR..105 * SECTOR]);
    assert_eq!(daemon.on_disk(), expected);
    let counters = transport.counters();
    let count = |name: &str| counters.iter().find(|(its_name, _)| *its_name == name).unwrap().1;
    assert!(count("bytes_in") > 64 * SECTOR as u64 && count("bytes_out") > 66 * SECTOR as u64);
    assert_eq!((count("reconnects"), count("memory_in_use")), (0, 0));
}

/// A request of a sector or more to the disk, in the slots from `head` on, in memory of its own.
fn request(guest: &Guest, queue: usize, head: u16, kind: u32, sector: u64, len: u32) -> u64 {
    let place = BUFFERS + 0x4_0000 * (queue as u64 * 64 + u64::from(head) / 4);
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    guest.memory.write(place, &header);
    guest.fill(place + 16, 1, UNTOUCHED);
    let (data, status) = (place + 0x1000, place + 16);
    let data = if kind == 0 { Descriptor::writable(data, len) } else { Descriptor::readable(data, len) };
    guest.offer(queue, head, &[Descriptor::readable(place, 16), data, Descriptor::writable(status, 1)]);
    place + 0x1000
}

fn status(guest: &Guest, data: u64) -> u8 {
    guest.bytes(data - 0x1000 + 16, 1)[0]
}

#[test]
fn a_failed_read_is_told_as_such_though_its_data_was_not_written() {
    let daemon = Daemon::start(1);
    let guest = Guest::new(config(BLOCK, &daemon.socket()), 128);
    let data = request(&guest, 0, 0, 0, (DISK / SECTOR) as u64 + 8, 512);
    guest.wait_used(0, 1);
    assert_eq!(status(&guest, data), 1, "VIRTIO_BLK_S_IOERR");
}

#[test]
fn every_queue_of_several_works_and_the_guest_is_told_how_many_there_are() {
    let daemon = Daemon::start(4);
    let mut four = config(BLOCK, &daemon.socket());
    four.queues = Some(4);
    let guest = Guest::new(four, 64);
    assert_eq!(guest.queues.len(), 4);
    assert_eq!(guest.config_bytes(34, 2), [4, 0]);
    for queue in 0..4 {
        let data = request(&guest, queue, 0, 0, queue as u64 * 8, 4096);
        guest.wait_used(queue, 1);
        assert_eq!(status(&guest, data), 0);
        assert_eq!(guest.bytes(data, 4096), pattern(DISK, 1)[queue * 4096..][..4096]);
    }
}

#[test]
fn the_queues_that_are_not_asked_for_are_not_told_of() {
    let daemon = Daemon::start(4);
    let guest = Guest::new(config(BLOCK, &daemon.socket()), 64);
    assert_eq!((guest.queues.len(), guest.config_bytes(34, 2)), (1, vec![1, 0]));
}

#[test]
fn a_daemon_that_is_killed_in_the_midst_of_it_loses_nothing() {
    let mut daemon = Daemon::start(1);
    let guest = Guest::new(config(BLOCK, &daemon.socket()), 128);
    let mut expected = pattern(DISK, 1);
    let len = 64 << 10;
    let mut done = 0u16;
    for round in 0..4u8 {
        let mut places = Vec::new();
        for slot in 0..24u16 {
            let place = BUFFERS + 0x4_0000 * u64::from(slot) + 0x1000;
            let data = pattern(len, round.wrapping_mul(24) + slot as u8);
            guest.memory.write(place, &data);
            let at = len * (usize::from(slot) + 24 * usize::from(round));
            expected[at..at + len].copy_from_slice(&data);
            places.push(request(&guest, 0, 4 * slot, 1, (at / SECTOR) as u64, len as u32));
            if slot == 12 {
                daemon.kill();
            }
        }
        daemon.start_again();
        done += 24;
        guest.wait_used(0, done);
        for place in places {
            assert_eq!(status(&guest, place), 0);
        }
    }
    assert!(!guest.needs_reset());
    assert!(guest.counter("reconnects") >= 4);
    assert_eq!(guest.counter("memory_in_use"), 0);
    assert!(daemon.on_disk() == expected, "every write is on the disk, and nothing else");
}

#[test]
fn a_reset_goes_on_with_the_same_connection() {
    let daemon = Daemon::start(1);
    let guest = Guest::new(config(BLOCK, &daemon.socket()), 128);
    for _ in 0..5 {
        let data = request(&guest, 0, 0, 0, 16, 4096);
        guest.wait_used(0, 1);
        assert_eq!(
            (status(&guest, data), guest.bytes(data, 4096)),
            (0, pattern(DISK, 1)[16 * SECTOR..][..4096].to_vec())
        );
        guest.reset();
    }
    assert_eq!((guest.counter("losses"), guest.counter("reconnects")), (0, 0));
}

/// A running daemon of QEMU 7.2 tells one size for all its life.
#[test]
fn a_disk_that_comes_back_larger_is_larger_for_the_guest() {
    let mut daemon = Daemon::start(1);
    let guest = Guest::new(config(BLOCK, &daemon.socket()), 128);
    request(&guest, 0, 0, 0, 0, 512);
    guest.wait_used(0, 1);

    daemon.kill();
    let image = fs::File::options().write(true).open(daemon.folder.path().join("disk.img")).unwrap();
    image.set_len(2 * DISK as u64).unwrap();
    daemon.start_again();

    let capacity = ((2 * DISK / SECTOR) as u64).to_le_bytes();
    eventually("the guest sees the new size", || guest.config_bytes(0, 8) == capacity);
    eventually("the guest is told", || guest.is_told_of_config());
}
