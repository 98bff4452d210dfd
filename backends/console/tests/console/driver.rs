//! The `virtio-drivers` crate's console driver: a driver none of us wrote.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use testkit::driver::{GuestHal, MmioTransport, Registers, Way};
use virtio_drivers::device::console::{Size, VirtIOConsole};
use virtio_mmio::Transport;

use crate::harness::{BASE, PATIENCE, Rig, pattern, wait_until};
use crate::readers::{connection, read_up_to, terminal, write_all};

type Driver = VirtIOConsole<GuestHal, MmioTransport<Arc<Transport>>>;

/// A guest with a console, which it has not found yet.
fn boot(way: Way, written: &str) -> Rig {
    Rig::reached_by(written, |memory| GuestHal::boot_by(way, memory.clone(), BASE, BASE + (8 << 20)))
}

fn probe(rig: &Rig) -> Driver {
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
    Way::ALL.into_iter().for_each(print_read_and_size);
}

fn print_read_and_size(way: Way) {
    let rig = boot(way, "cols = 132\nrows = 43");
    let mut driver = probe(&rig);
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
    Way::ALL.into_iter().for_each(use_the_first_port);
}

fn use_the_first_port(way: Way) {
    let rig = boot(way, "sink = \"socket\"\n[[port]]\nname = \"agent\"\nsink = \"null\"");
    let mut driver = probe(&rig);
    let reader = connection(&rig.place("0.sock"));

    driver.send_bytes(b"hello").unwrap();
    assert_eq!(read_up_to(&reader, 5), b"hello");
    write_all(&reader, b"x");
    assert_eq!(receive(&mut driver), b'x');
}

#[test]
fn a_guest_that_drops_its_driver_can_start_another() {
    Way::ALL.into_iter().for_each(start_another);
}

fn start_another(way: Way) {
    let rig = boot(way, "");
    drop(probe(&rig));
    rig.transport.reset();
    let mut driver = probe(&rig);
    driver.send_bytes(b"again").unwrap();
    assert_eq!(read_up_to(terminal(&rig.place("0")), 5), b"again");
}

#[test]
fn a_foreign_driver_with_two_buffers_gets_all_of_long_input() {
    Way::ALL.into_iter().for_each(get_long_input);
}

fn get_long_input(way: Way) {
    let rig = boot(way, "sink = \"socket\"");
    let mut driver = probe(&rig);
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
