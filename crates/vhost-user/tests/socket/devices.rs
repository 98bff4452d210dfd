//! Real devices, driven by the drivers of `virtio_drivers`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use testkit::device::eventually;
use testkit::driver::GuestHal;
use testkit::memory::FakeForeignMemory;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_backend::{Kind, Owner, reach};
use virtio_console::{Console, Port, Sink};
use virtio_disk::{Config, Disk, EngineKind, Image};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::console::{Size, VirtIOConsole};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::socket::{VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType};
use virtio_drivers::transport::DeviceType;
use virtio_rng::Rng;
use virtio_vsock::Vsock;

use crate::service::Service;
use crate::transport::SocketTransport;
use crate::vmm::{RAM, RAM_LEN};

const SECTORS: usize = 512;

fn boot() -> FakeForeignMemory {
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    GuestHal::boot(memory.clone(), RAM, RAM + RAM_LEN);
    memory
}

fn disk(engine: EngineKind) -> (Service, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len((SECTORS * SECTOR_SIZE) as u64).unwrap();
    let image = Image::from_file(file.try_clone().unwrap(), "test").unwrap();
    let disk = Disk::new(&Config { engine, ..Config::default() }, image).unwrap();
    (Service::start(Arc::new(disk)), file)
}

/// Serves a device as its program would, with its sockets in `directory`.
fn open<K: Kind>(mut config: K::Config, directory: &Path) -> Service {
    let directory = directory.to_owned();
    let owner = Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory };
    let descriptors = K::open(&mut config, &owner).unwrap();
    Service::start(K::make(&config, descriptors, reach::directly::<K>(&config)).unwrap())
}

fn probe(service: &Service, memory: &FakeForeignMemory) -> VirtIOBlk<GuestHal, SocketTransport> {
    VirtIOBlk::new(SocketTransport::new(service, DeviceType::Block, memory.clone())).unwrap()
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..4096).map(|index| ((index * 7 + seed) % 251) as u8).collect()
}

#[test]
fn a_disk_is_written_and_read_and_keeps_what_was_written_over_connections() {
    for engine in [EngineKind::Plain, EngineKind::IoUring] {
        let (service, file) = disk(engine);
        let memory = boot();
        let mut driver = probe(&service, &memory);
        assert_eq!(driver.capacity(), SECTORS as u64);
        for block in (0..SECTORS).step_by(8) {
            driver.write_blocks(block, &pattern(block)).unwrap();
        }
        driver.flush().unwrap();
        drop(driver);
        let mut driver = probe(&service, &memory);
        for block in (0..SECTORS).step_by(8) {
            let (mut found, mut stored) = (vec![0; 4096], vec![0; 4096]);
            driver.read_blocks(block, &mut found).unwrap();
            file.read_exact_at(&mut stored, (block * SECTOR_SIZE) as u64).unwrap();
            assert_eq!(found, pattern(block), "block {block}");
            assert_eq!(stored, found);
        }
    }
}

#[test]
fn a_disk_loses_nothing_while_its_memory_is_replaced_over_and_over() {
    let (service, _file) = disk(EngineKind::IoUring);
    let memory = boot();
    let transport = SocketTransport::new(&service, DeviceType::Block, memory);
    let (frontend, whole) = transport.share();
    let halves = [(RAM, RAM_LEN / 2), (RAM + RAM_LEN / 2, RAM_LEN / 2)].map(|(start, len)| VhostUserMemoryRegionInfo {
        guest_phys_addr: start,
        userspace_addr: whole.userspace_addr + (start - RAM),
        mmap_offset: start - RAM,
        memory_size: len,
        ..whole
    });
    let mut driver = VirtIOBlk::<GuestHal, _>::new(transport).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                frontend.set_mem_table(&halves).unwrap();
                frontend.set_mem_table(&[whole]).unwrap();
            }
        });
        for round in 0..4 {
            for block in (0..SECTORS).step_by(8) {
                driver.write_blocks(block, &pattern(block + round)).unwrap();
                let mut found = vec![0; 4096];
                driver.read_blocks(block, &mut found).unwrap();
                assert_eq!(found, pattern(block + round), "block {block}");
            }
        }
    });
}

#[test]
fn random_numbers_arrive() {
    let service =
        Service::start(Arc::new(Rng::with_source(&Default::default(), Arc::new(virtio_rng::Kernel)).unwrap()));
    let memory = boot();
    let transport = SocketTransport::new(&service, DeviceType::EntropySource, memory);
    let mut driver = VirtIORng::<GuestHal, _>::new(transport).unwrap();
    let mut numbers = [0; 64];
    assert_eq!(driver.request_entropy(&mut numbers).unwrap(), 64);
    assert_ne!(numbers, [0; 64]);
}

#[test]
fn a_console_knows_its_size_prints_and_reads() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let port = Port { sink: Sink::Socket, path: Some(path.clone()), ..Port::default() };
    let service = open::<Console>(virtio_console::Config { cols: 132, rows: 43, ports: vec![port] }, directory.path());
    let transport = SocketTransport::new(&service, DeviceType::Console, boot());
    let mut driver = VirtIOConsole::<GuestHal, _>::new(transport).unwrap();
    let mut host = UnixStream::connect(path).unwrap();

    assert_eq!(driver.size().unwrap(), Some(Size { columns: 132, rows: 43 }));
    driver.send_bytes(b"login: ").unwrap();
    let mut printed = [0; 7];
    host.read_exact(&mut printed).unwrap();
    assert_eq!(&printed, b"login: ");
    host.write_all(b"root").unwrap();
    for typed in *b"root" {
        eventually("what was typed arrives", || driver.recv(false).unwrap().is_some());
        assert_eq!(driver.recv(true).unwrap(), Some(typed));
    }
}

#[test]
fn a_connection_between_guest_and_host_carries_data_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vsock");
    let service = open::<Vsock>(virtio_vsock::Config { cid: 7, socket: Some(socket.clone()) }, directory.path());
    let transport = SocketTransport::new(&service, DeviceType::Socket, boot());
    let mut driver = VsockConnectionManager::<GuestHal, _, 4096>::new(VirtIOSocket::new(transport).unwrap());
    let listener = UnixListener::bind(format!("{}_4321", socket.display())).unwrap();
    let address = VsockAddr { cid: 2, port: 4321 };
    let event = |driver: &mut VsockConnectionManager<_, _, 4096>| {
        let mut event = None;
        eventually("something happens to the connection", || {
            event = driver.poll().unwrap().filter(|event| event.event_type != VsockEventType::CreditUpdate);
            event.is_some()
        });
        event.unwrap().event_type
    };

    assert_eq!(driver.guest_cid(), 7);
    driver.connect(address, 77).unwrap();
    assert_eq!(event(&mut driver), VsockEventType::Connected);
    let mut host = listener.accept().unwrap().0;
    driver.send(address, 77, b"from the guest").unwrap();
    let mut came = [0; 14];
    host.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"from the guest");
    host.write_all(b"from the host").unwrap();
    assert_eq!(event(&mut driver), VsockEventType::Received { length: 13 });
    let mut came = [0; 13];
    driver.recv(address, 77, &mut came).unwrap();
    assert_eq!(&came, b"from the host");
}
