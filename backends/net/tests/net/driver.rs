//! The `virtio-drivers` crate's network driver, through the virtio-mmio registers: a driver none of us wrote.

use std::sync::Arc;

use guest_memory::{Budget, MapCache};
use testkit::driver::{GuestHal, MmioTransport, Way};
use testkit::memory::FakeForeignMemory;
use virtio_drivers::device::net::VirtIONet;
use virtio_mmio::{InterruptLine, Transport};
use virtio_net::Net;

use crate::fake::FakeHost;
use crate::guest::{BASE, MAC, config, for_card, from_card, until};

/// The driver polls.
struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}

type Driver = VirtIONet<GuestHal, MmioTransport<Arc<Transport>>, 16>;

#[test]
fn a_foreign_driver_sends_and_receives_and_can_be_followed_by_another() {
    Way::ALL.into_iter().for_each(send_and_receive);
}

fn send_and_receive(way: Way) {
    let (host, engine) = FakeHost::new(1);
    let card = Arc::new(Net::with_engine(&config(), engine).unwrap());
    let memory = FakeForeignMemory::new(&[(BASE, 8 << 20)]);
    let cache = MapCache::new(GuestHal::boot_by(way, memory, BASE, BASE + (8 << 20)), Budget::default());
    let transport = Transport::new(card, Arc::new(NoLine), cache, "net").unwrap();
    for _ in 0..2 {
        let mut driver = Driver::new(MmioTransport(Arc::clone(&transport)), 2048).unwrap();
        assert_eq!(driver.mac_address(), MAC);
        for seed in 0..100 {
            let mut packet = driver.new_tx_buffer(100);
            packet.packet_mut().copy_from_slice(&from_card(100, seed));
            driver.send(packet).unwrap();
            assert_eq!(host.take().1, from_card(100, seed), "{way:?}");
        }
        for seed in 0..100 {
            host.put(&for_card(1514, seed));
            until("a packet comes", || driver.can_recv());
            let packet = driver.receive().unwrap();
            assert_eq!(packet.packet(), for_card(1514, seed), "{way:?}");
            driver.recycle_rx_buffer(packet).unwrap();
        }
        // More than it has buffers for: with event index it kicks only when it is asked to.
        for round in 0..20 {
            (0..20).for_each(|seed| host.put(&for_card(60, seed)));
            for seed in 0..20 {
                until("a packet comes", || driver.can_recv());
                let packet = driver.receive().unwrap();
                assert_eq!(packet.packet(), for_card(60, seed), "{way:?}, round {round}");
                driver.recycle_rx_buffer(packet).unwrap();
            }
        }
        drop(driver);
        testkit::driver::Registers::reset(&transport);
    }
}
