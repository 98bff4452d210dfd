//! The `virtio-drivers` crate's socket driver, through the virtio-mmio registers: a driver none of us wrote.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use guest_memory::{Budget, MapCache};
use tempfile::TempDir;
use testkit::driver::{GuestHal, MmioTransport, Way};
use testkit::memory::FakeForeignMemory;
use virtio_drivers::device::socket::{
    DisconnectReason, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType,
};
use virtio_mmio::Transport;

use crate::harness::{CID, NoLine, PATIENCE, open, pattern, read_line};

type Driver = VsockConnectionManager<GuestHal, MmioTransport<Arc<Transport>>, 4096>;

/// A guest with the driver; its connections have 8 KiB of room.
struct Booted {
    driver: Driver,
    socket: PathBuf,
    _folder: TempDir,
}

const RAM: (u64, u64) = (0x4000_0000, 8 << 20);

fn boot(way: Way) -> Booted {
    let folder = tempfile::tempdir().unwrap();
    let (device, socket) = open(folder.path());
    let memory = FakeForeignMemory::new(&[RAM]);
    let cache = MapCache::new(GuestHal::boot_by(way, memory, RAM.0, RAM.0 + RAM.1), Budget::default());
    let transport = Transport::new(device, Arc::new(NoLine), cache, "vsock").unwrap();
    let driver = VsockConnectionManager::new_with_capacity(VirtIOSocket::new(MmioTransport(transport)).unwrap(), 8192);
    Booted { driver, socket, _folder: folder }
}

impl Booted {
    fn wait(&mut self) -> VsockEvent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.driver.poll().unwrap() {
                Some(VsockEvent { event_type: VsockEventType::CreditUpdate, .. }) => {}
                Some(event) => return event,
                None => assert!(Instant::now() < deadline, "nothing happens"),
            }
            thread::yield_now();
        }
    }
}

#[test]
fn a_foreign_driver_connects_and_exchanges_data() {
    Way::ALL.into_iter().for_each(connect_and_exchange);
}

fn connect_and_exchange(way: Way) {
    let mut guest = boot(way);
    assert_eq!(guest.driver.guest_cid(), CID);
    let listener = UnixListener::bind(format!("{}_4321", guest.socket.display())).unwrap();
    let address = VsockAddr { cid: 2, port: 4321 };
    guest.driver.connect(address, 77).unwrap();
    assert_eq!(guest.wait().event_type, VsockEventType::Connected);
    let mut host = listener.accept().unwrap().0;

    guest.driver.send(address, 77, &pattern(3000, 1)).unwrap();
    let mut bytes = vec![0; 3000];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, pattern(3000, 1));

    let writer = thread::spawn(move || host.write_all(&pattern(100_000, 2)));
    let mut all: Vec<u8> = Vec::new();
    while all.len() < 100_000 {
        if guest.driver.recv_buffer_available_bytes(address, 77).unwrap() == 0 {
            assert!(matches!(guest.wait().event_type, VsockEventType::Received { .. }));
        }
        let mut bytes = [0; 5000];
        let len = guest.driver.recv(address, 77, &mut bytes).unwrap();
        all.extend(&bytes[..len]);
        guest.driver.update_credit(address, 77).unwrap();
    }
    assert!(all == pattern(100_000, 2));
    writer.join().unwrap().unwrap();
    assert_eq!(guest.wait().event_type, VsockEventType::Disconnected { reason: DisconnectReason::Shutdown });
}

#[test]
fn a_foreign_driver_is_connected_to() {
    Way::ALL.into_iter().for_each(be_connected_to);
}

fn be_connected_to(way: Way) {
    let mut guest = boot(way);
    guest.driver.listen(80);
    let socket = guest.socket.clone();
    let client = thread::spawn(move || {
        let dial = |port: u32| {
            let mut host = UnixStream::connect(&socket).unwrap();
            writeln!(host, "CONNECT {port}").unwrap();
            host
        };
        // Nobody listens there.
        assert_eq!(read_line(&dial(81)), "");
        let mut host = dial(80);
        assert!(read_line(&host).starts_with("OK "));
        host.write_all(b"ping").unwrap();
        let mut pong = String::new();
        host.read_to_string(&mut pong).unwrap();
        pong
    });
    let request = guest.wait();
    assert_eq!((request.event_type, request.destination.port), (VsockEventType::ConnectionRequest, 80));
    let peer = request.source;
    assert_eq!(guest.wait().event_type, VsockEventType::Received { length: 4 });
    let mut bytes = [0; 4];
    guest.driver.recv(peer, 80, &mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    guest.driver.send(peer, 80, b"pong").unwrap();
    guest.driver.shutdown(peer, 80).unwrap();
    assert_eq!(guest.wait().event_type, VsockEventType::Disconnected { reason: DisconnectReason::Reset });
    assert_eq!(client.join().unwrap(), "pong");
}

#[test]
fn a_foreign_driver_is_refused_where_nobody_listens() {
    Way::ALL.into_iter().for_each(be_refused);
}

fn be_refused(way: Way) {
    let mut guest = boot(way);
    guest.driver.connect(VsockAddr { cid: 2, port: 1 }, 77).unwrap();
    assert_eq!(guest.wait().event_type, VsockEventType::Disconnected { reason: DisconnectReason::Reset });
}
