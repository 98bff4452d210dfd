//! The `virtio-drivers` crate's console driver: a driver none of us wrote.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use testkit::driver::{GuestHal, MmioTransport, Registers};
use virtio_drivers::device::console::{Size, VirtIOConsole};
use virtio_mmio::Transport;

use crate::harness::{BASE, PATIENCE, Rig, pattern, wait_until};
use crate::readers::{connection, read_up_to, terminal, write_all};

type Driver = VirtIOConsole<GuestHal, MmioTransport<Arc<Transport>>>;

fn boot(rig: &Rig) -> Driver {
    GuestHal::boot(rig.memory.clone(), BASE, BASE + (8 << 20));
    Driver::new(MmioTransport(Arc::clone(&rig.transport))).unwrap()
}

fn receive(driver: &mut Driver) -> u8 {
    let mut byte = None;
    wait_until("a byte comes", || {
        byte = driver.recv(true).unwrap();
        byte.is_some()
    });
    byte.unwrap()
}

#[test]
fn a_foreign_driver_prints_reads_and_knows_its_size() {
    let rig = Rig::new("cols = 132\nrows = 43");
    let mut driver = boot(&rig);
    let reader = terminal(&rig.place("0"));

    assert_eq!(driver.size().unwrap(), Some(Size { columns: 132, rows: 43 }));
    driver.send_bytes(b"login: ").unwrap();
    assert_eq!(read_up_to(&reader, 7), b"login: ");
    write_all(&reader, b"root\r");
    let typed: Vec<u8> = (0..5).map(|_| receive(&mut driver)).collect();
    assert_eq!(typed, b"root\r");
    driver.emergency_write(b'!').unwrap();
    assert_eq!(read_up_to(&reader, 1), b"!");
}

#[test]
fn a_foreign_driver_of_one_port_uses_the_first_of_several() {
    let rig = Rig::new("sink = \"socket\"\n[[port]]\nname = \"agent\"\nsink = \"null\"");
    let mut driver = boot(&rig);
    let reader = connection(&rig.place("0.sock"));

    driver.send_bytes(b"hello").unwrap();
    assert_eq!(read_up_to(&reader, 5), b"hello");
    write_all(&reader, b"x");
    assert_eq!(receive(&mut driver), b'x');
}

#[test]
fn a_guest_that_drops_its_driver_can_start_another() {
    let rig = Rig::new("");
    drop(boot(&rig));
    rig.transport.reset();
    let mut driver = boot(&rig);
    driver.send_bytes(b"again").unwrap();
    assert_eq!(read_up_to(terminal(&rig.place("0")), 5), b"again");
}

#[test]
fn a_foreign_driver_with_two_buffers_gets_all_of_long_input() {
    let rig = Rig::new("sink = \"socket\"");
    let mut driver = boot(&rig);
    let bytes = pattern(50_000);
    let (place, typed) = (rig.place("0"), bytes.clone());
    let writer = thread::spawn(move || write_all(connection(&place), &typed));
    let deadline = Instant::now() + PATIENCE;
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        assert!(Instant::now() < deadline, "{} bytes came: {:?}", read.len(), rig.transport.counters());
        read.extend(driver.recv(true).unwrap());
    }
    assert!(read == bytes);
    writer.join().unwrap();
}
