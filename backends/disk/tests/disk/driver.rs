//! The `virtio-drivers` crate's block driver, through the virtio-mmio registers: a driver none of us wrote.

use std::sync::Arc;

use guest_memory::{Budget, MapCache};
use testkit::driver::{GuestHal, MmioTransport, Way};
use testkit::memory::FakeForeignMemory;
use virtio_backend::Backend;
use virtio_disk::{Cache, Disk, Image};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_mmio::{InterruptLine, Transport};

use crate::harness::{BASE, Builder, SECTOR, pattern};
use crate::on_each_engine;

/// The driver polls.
struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}

type Driver = VirtIOBlk<GuestHal, MmioTransport<Arc<Transport>>>;

/// A guest that has found its disk.
fn boot(way: Way, builder: &Builder) -> (Driver, Arc<Transport>) {
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let image = Image::open(&builder.path(), builder.config.access()).unwrap();
    let disk: Arc<dyn Backend> = Arc::new(Disk::new(&builder.config, image).unwrap());
    let memory = FakeForeignMemory::new(&[(BASE, 8 << 20)]);
    let cache = MapCache::new(GuestHal::boot_by(way, memory, BASE, BASE + (8 << 20)), Budget::default());
    let transport = Transport::new(disk, Arc::new(NoLine), cache, "disk").unwrap();
    (VirtIOBlk::new(MmioTransport(Arc::clone(&transport))).unwrap(), transport)
}

on_each_engine! {
    fn a_foreign_driver_reads_writes_flushes_and_asks_the_serial(engine) {
        for (way, cache) in Way::ALL.into_iter().flat_map(|way| [(way, Cache::Writeback), (way, Cache::Writethrough)]) {
            let builder = Builder::new(engine).config(|config| {
                config.cache = cache;
                config.serial = "vol-1".into();
            });
            let (mut driver, _transport) = boot(way, &builder);
            assert_eq!((driver.capacity(), driver.readonly()), (256, false));
            let mut serial = [0; 20];
            assert_eq!(driver.device_id(&mut serial).unwrap(), 5);
            assert_eq!(&serial[..5], b"vol-1", "{way:?}");

            let data = pattern(16 * SECTOR, 42);
            driver.write_blocks(40, &data).unwrap();
            driver.flush().unwrap();
            let mut read = vec![0; 18 * SECTOR];
            driver.read_blocks(39, &mut read).unwrap();

            let mut expected = pattern(256 * SECTOR, 1);
            expected[40 * SECTOR..56 * SECTOR].copy_from_slice(&data);
            assert_eq!(read, expected[39 * SECTOR..57 * SECTOR], "{way:?}");
            assert_eq!(std::fs::read(builder.path()).unwrap(), expected, "{way:?}");
        }
    }

    fn a_foreign_driver_sees_errors_and_goes_on(engine) {
        for way in Way::ALL {
            let builder = Builder::new(engine).config(|config| config.read_only = true);
            let (mut driver, _transport) = boot(way, &builder);
            assert!(driver.readonly());
            assert!(driver.write_blocks(0, &[0; SECTOR]).is_err(), "{way:?}");
            assert!(driver.read_blocks(256, &mut [0; SECTOR]).is_err(), "{way:?}");
            let mut read = [0; SECTOR];
            driver.read_blocks(0, &mut read).unwrap();
            assert_eq!(read, pattern(SECTOR, 1)[..]);
        }
    }

    fn a_guest_that_drops_its_driver_can_start_another(engine) {
        for way in Way::ALL {
            let builder = Builder::new(engine);
            let (driver, transport) = boot(way, &builder);
            drop(driver);
            testkit::driver::Registers::reset(&transport);
            let mut driver = Driver::new(MmioTransport(Arc::clone(&transport))).unwrap();
            let mut read = [0; SECTOR];
            driver.read_blocks(255, &mut read).unwrap();
            assert_eq!(read, pattern(256 * SECTOR, 1)[255 * SECTOR..], "{way:?}");
        }
    }
}
