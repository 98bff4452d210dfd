//! Our own disk behind a socket as the backend: both directions of the protocol, one against the other.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;
use testkit::driver::{Descriptor, Way};
use vhost_user::{Server, Stopper};
use virtio_backend::{Backend, Kind, reach};
use virtio_disk::Disk;

use crate::harness::{BUFFERS, Guest, UNTOUCHED, config, pattern};

const BLOCK: u32 = 2;
const DISK: usize = 1 << 20;

/// A disk at a socket, in a folder.
struct Daemon {
    folder: TempDir,
    disk: Arc<dyn Backend>,
}

impl Daemon {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        std::fs::write(&image, pattern(DISK, 1)).unwrap();
        let image = File::options().read(true).write(true).open(image).unwrap();
        let config = virtio_disk::Config::default();
        let disk = Disk::make(&config, vec![image.into()], reach::directly::<Disk>(&config)).unwrap();
        Self { folder, disk }
    }

    fn serve(&self) -> (Stopper, thread::JoinHandle<()>) {
        let socket = self.folder.path().join("disk.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let server = Server::new("disk", Arc::clone(&self.disk), listener).unwrap();
        (server.stopper(), thread::spawn(|| server.serve().unwrap()))
    }

    fn guest(&self, way: Way) -> Guest {
        Guest::by(way, config(BLOCK, &self.folder.path().join("disk.sock")), 256)
    }
}

/// Offers a read of `len` bytes at [`BUFFERS`] with its status behind them, in one descriptor.
fn offer_read(guest: &Guest, sector: u64, len: u32) {
    let header = [&[0; 8][..], &sector.to_le_bytes()].concat();
    guest.memory.write(BUFFERS - 16, &header);
    guest.fill(BUFFERS, len as usize + 1, UNTOUCHED);
    guest.offer(0, 0, &[Descriptor::readable(BUFFERS - 16, 16), Descriptor::writable(BUFFERS, len + 1)]);
}

#[test]
fn what_is_read_is_what_is_there_and_a_failure_is_seen_though_nothing_was_written_before_it() {
    for way in Way::ALL {
        let daemon = Daemon::new();
        daemon.serve();
        let guest = daemon.guest(way);
        offer_read(&guest, 8, 4096);
        assert_eq!(guest.wait_used(0, 1).len, 4097);
        assert_eq!(guest.bytes(BUFFERS, 4097), [&pattern(DISK, 1)[4096..8192], &[0]].concat(), "{way:?}");

        offer_read(&guest, (DISK / 512) as u64, 4096);
        assert!(guest.wait_used(0, 2).len < 4097);
        assert_eq!(guest.bytes(BUFFERS + 4096, 1), [1], "VIRTIO_BLK_S_IOERR");
    }
}

#[test]
fn a_daemon_that_is_restarted_again_and_again_is_found_again_and_again() {
    let daemon = Daemon::new();
    let mut running = daemon.serve();
    let guest = daemon.guest(Way::Frames);
    for round in 0..6u16 {
        offer_read(&guest, u64::from(round), 512);
        guest.wait_used(0, round + 1);
        assert_eq!(guest.bytes(BUFFERS, 512), pattern(DISK, 1)[512 * usize::from(round)..][..512]);
        running.0.stop();
        running.1.join().unwrap();
        running = daemon.serve();
    }
    assert!(!guest.needs_reset());
    assert!(guest.counter("reconnects") >= 5);
}
