//! What a driver sees, and what one does that no one here has written.

use std::sync::Arc;

use guest_memory::{Budget, MapCache};
use testkit::driver::{GuestHal, MmioTransport, Register, Registers, Way};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Kind, reach};
use virtio_drivers::device::rng::VirtIORng;
use virtio_mmio::Transport;
use virtio_rng::{Config, Rng};

use crate::harness::{Line, Mood, RAM, RAM_LEN, Rig};

#[test]
fn an_unmodified_driver_gets_random_numbers_of_the_kernel() {
    for way in Way::ALL {
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let cache = MapCache::new(GuestHal::boot_by(way, memory, RAM, RAM + RAM_LEN), Budget::default());
        let config = Config::default();
        let device = Rng::make(&config, Vec::new(), reach::directly::<Rng>(&config)).unwrap();
        let transport = Transport::new(device, Arc::<Line>::default(), cache, "rng").unwrap();
        let mut driver = VirtIORng::<GuestHal, _>::new(MmioTransport(transport)).unwrap();

        let (mut first, mut second) = ([0; 512], [0; 512]);
        assert_eq!(driver.request_entropy(&mut first).unwrap(), 512);
        assert_eq!(driver.request_entropy(&mut second).unwrap(), 512);

        assert_ne!(first, second);
        // Of 512 random bytes, so few different ones do not come in the lifetime of the universe.
        assert!(first.iter().collect::<std::collections::HashSet<_>>().len() > 128, "{way:?}: {first:?}");
    }
}

#[test]
fn spec_5_4_1_and_5_4_2_device_id_4_with_one_queue() {
    let rig = Rig::new(Mood::Gives(usize::MAX));
    assert_eq!(rig.registers.read(Register::DeviceId), 4);
    let max_of = |queue| {
        rig.registers.write(Register::QueueSel, queue);
        rig.registers.read(Register::QueueNumMax)
    };
    assert_eq!((max_of(0), max_of(1)), (64, 0));
}

#[test]
fn spec_5_4_3_and_5_4_4_no_features_and_no_configuration() {
    let rig = Rig::new(Mood::Gives(usize::MAX));
    assert_eq!(rig.registers.offered_features() & 0xff_ffff, 0);
    assert_eq!(rig.registers.read(Register::Config), 0);
}
