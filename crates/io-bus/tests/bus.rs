//! How accesses find their device.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::{Arc, Mutex};

use io_bus::{Bus, Device, Space, Window, Written, defer};

/// Remembers writes, and reads as the low byte of the offset.
#[derive(Default)]
struct Probe {
    written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Device for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset.to_le_bytes()[0]);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Written {
        self.written.lock().unwrap().push((offset, data.to_vec()));
        Written::Now
    }
}

fn window(start: u64, len: u64) -> Window {
    Window::new(Space::Mmio, start, len).unwrap()
}

fn read_u32(bus: &Bus, space: Space, addr: u64) -> u32 {
    let mut data = [0; 4];
    bus.read(space, addr, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn an_access_reaches_the_window_that_holds_it_with_its_offset() {
    let bus = Bus::new();
    let (low, high) = (Arc::new(Probe::default()), Arc::new(Probe::default()));
    let _low = bus.claim(window(0x1000, 0x200), low.clone()).unwrap();
    let _high = bus.claim(window(0x1200, 0x200), high.clone()).unwrap();

    assert!(matches!(bus.write(Space::Mmio, 0x1250, &[1, 2]), Written::Now));

    assert_eq!(*high.written.lock().unwrap(), [(0x50, vec![1, 2])]);
    assert!(low.written.lock().unwrap().is_empty());
    assert_eq!(read_u32(&bus, Space::Mmio, 0x1010), 0x1010_1010);
    assert_eq!(bus.unclaimed(), 0);
}

#[test]
fn an_access_nobody_claims_reads_all_ones_and_is_counted() {
    let bus = Bus::new();
    let _claim = bus.claim(window(0x1000, 0x200), Arc::new(Probe::default())).unwrap();

    for (space, addr) in [
        (Space::Mmio, 0x0),
        (Space::Mmio, 0xffe),
        (Space::Mmio, 0x11fe),
        (Space::Mmio, 0x1200),
        (Space::Mmio, u64::MAX),
        (Space::PortIo, 0x1000),
        (Space::PciConfig, 0x1000),
    ] {
        assert_eq!(read_u32(&bus, space, addr), u32::MAX, "{space:?} {addr:#x}");
    }
    assert!(matches!(bus.write(Space::Mmio, 0x1200, &[0; 8]), Written::Now));
    assert_eq!(bus.unclaimed(), 8);
}

#[test]
fn windows_of_a_space_never_overlap() {
    let bus = Bus::new();
    let held = window(0x1000, 0x200);
    let _claim = bus.claim(held, Arc::new(Probe::default())).unwrap();

    for (start, len) in [(0x1000, 0x200), (0xfff, 2), (0x11ff, 1), (0x1100, 4), (0, 0x10000)] {
        let refused = bus.claim(window(start, len), Arc::new(Probe::default())).err().unwrap();
        assert_eq!(refused.taken, held);
    }
    assert!(bus.claim(window(0xf00, 0x100), Arc::new(Probe::default())).is_ok());
    let other = Window::new(Space::PortIo, 0x1000, 0x200).unwrap();
    assert!(bus.claim(other, Arc::new(Probe::default())).is_ok(), "spaces are apart");
}

#[test]
fn a_window_goes_with_its_claim_and_can_be_claimed_again() {
    let bus = Bus::new();
    let claim = bus.claim(window(0x1000, 0x200), Arc::new(Probe::default())).unwrap();
    let neighbour = bus.claim(window(0x2000, 0x200), Arc::new(Probe::default())).unwrap();
    drop(claim);

    assert_eq!(read_u32(&bus, Space::Mmio, 0x1000), u32::MAX);
    assert_eq!(read_u32(&bus, Space::Mmio, 0x2000), 0);
    assert!(bus.claim(window(0x1000, 0x200), Arc::new(Probe::default())).is_ok());
    drop(neighbour);
}

/// Gives up its own window when written to.
struct Leaver(Mutex<Option<io_bus::Claim>>);

impl Device for Leaver {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Written {
        drop(self.0.lock().unwrap().take());
        let (completer, deferral) = defer();
        drop(completer);
        Written::Later(deferral)
    }
}

#[test]
fn a_device_may_release_its_window_from_within_an_access() {
    let bus = Bus::new();
    let leaver = Arc::new(Leaver(Mutex::new(None)));
    let claim = bus.claim(window(0x1000, 0x200), leaver.clone()).unwrap();
    *leaver.0.lock().unwrap() = Some(claim);

    let Written::Later(deferral) = bus.write(Space::Mmio, 0x1000, &[0]) else { panic!("deferred") };
    let (told, hear) = std::sync::mpsc::channel();
    deferral.then(move || told.send(()).unwrap());
    hear.recv().unwrap();
    assert_eq!(read_u32(&bus, Space::Mmio, 0x1000), u32::MAX);
}

#[test]
fn an_access_waits_for_the_device_of_its_window_and_then_reaches_it() {
    let bus = Bus::new();
    let claim = bus.reserve(window(0x1000, 0x200)).unwrap();
    let reads = Arc::new(Mutex::new(Vec::new()));
    for addr in [0x1010, 0x1020] {
        let (bus_then, reads) = (Arc::clone(&bus), Arc::clone(&reads));
        let device = bus.awaited(Space::Mmio, addr).unwrap();
        device.then(move || reads.lock().unwrap().push(read_u32(&bus_then, Space::Mmio, addr)));
    }
    assert!(reads.lock().unwrap().is_empty());

    claim.fill(Arc::new(Probe::default()));

    assert_eq!(*reads.lock().unwrap(), [0x1010_1010, 0x2020_2020]);
    assert!(bus.awaited(Space::Mmio, 0x1010).is_none());
    drop(claim);
    assert_eq!(read_u32(&bus, Space::Mmio, 0x1010), u32::MAX);
}

#[test]
fn only_accesses_to_the_reserved_window_wait() {
    let bus = Bus::new();
    let _device = bus.claim(window(0x1200, 0x200), Arc::new(Probe::default())).unwrap();
    let _reserved = bus.reserve(window(0x1000, 0x200)).unwrap();

    let waits = |space, addr| bus.awaited(space, addr).is_some();

    assert!(waits(Space::Mmio, 0x1000) && waits(Space::Mmio, 0x11ff));
    assert!(!waits(Space::Mmio, 0xfff) && !waits(Space::Mmio, 0x1200) && !waits(Space::PortIo, 0x1000));
    assert!(bus.reserve(window(0x11ff, 1)).is_err(), "it is taken");
}

#[test]
fn an_access_whose_device_never_comes_finds_nothing() {
    let bus = Bus::new();
    let claim = bus.reserve(window(0x1000, 0x200)).unwrap();
    let read = Arc::new(Mutex::new(None));
    let (bus_then, read_then) = (Arc::clone(&bus), Arc::clone(&read));
    bus.awaited(Space::Mmio, 0x1000).unwrap().then(move || {
        *read_then.lock().unwrap() = Some(read_u32(&bus_then, Space::Mmio, 0x1000));
    });

    drop(claim);

    assert_eq!(*read.lock().unwrap(), Some(u32::MAX));
    assert!(bus.reserve(window(0x1000, 0x200)).is_ok(), "it is free again");
}
