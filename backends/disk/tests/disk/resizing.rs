//! Row E13: the image grows and shrinks under a running disk.

use std::fs::OpenOptions;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use guest_memory::{Budget, MapCache};
use testkit::device::eventually;
use testkit::driver::{Descriptor, Register, Registers};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Operation};
use virtio_disk::{EngineKind, OnError};
use virtio_mmio::{InterruptLine, Transport};

use crate::harness::{BASE, Builder, DATA, IOERR, OK, Rig, SECTOR, kind, pattern};
use crate::on_each_engine;
use crate::scripted;

fn set_len(rig: &Rig, sectors: u64) {
    OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(sectors * SECTOR as u64).unwrap();
}

fn resize(rig: &Rig, shrink: bool) -> Result<(), String> {
    rig.disk.operate(Operation::Resize { shrink })
}

fn capacity(rig: &Rig) -> u64 {
    let mut sectors = [0; 8];
    rig.disk.read_config(0, &mut sectors);
    u64::from_le_bytes(sectors)
}

on_each_engine! {
    fn e13_a_larger_image_is_a_larger_disk_once_the_operator_says_so(engine) {
        let rig = Rig::new(engine);
        set_len(&rig, 512);
        assert_eq!((rig.read(300, 1).status, capacity(&rig)), (IOERR, 256));

        resize(&rig, false).unwrap();

        assert_eq!(capacity(&rig), 512);
        assert_eq!(rig.read(300, 1).data, [0; SECTOR]);
        assert_eq!(rig.write(511, &[7; SECTOR]), OK);
        assert_eq!(rig.read(512, 1).status, IOERR);
        let rig = rig.reset();
        assert_eq!((capacity(&rig), rig.read(511, 1).data), (512, vec![7; SECTOR]));
    }

    fn e13_a_smaller_image_is_a_smaller_disk_only_if_that_is_meant(engine) {
        let rig = Rig::new(engine);
        set_len(&rig, 128);
        let words = resize(&rig, false).unwrap_err();
        assert!(words.contains("--shrink") && words.contains("65536") && words.contains("131072"), "{words}");
        assert_eq!(capacity(&rig), 256);

        resize(&rig, true).unwrap();

        assert_eq!((capacity(&rig), rig.read(127, 1).status, rig.read(128, 1).status), (128, OK, IOERR));
        assert_eq!(rig.counter("host_failures"), 0, "refused before the host is asked");
    }

    fn e13_sizes_that_no_disk_can_have_are_refused_with_what_to_do(engine) {
        let rig = Rig::new(engine);
        let file = OpenOptions::new().write(true).open(&rig.path).unwrap();
        for (size, word) in [(0, "is empty"), (256 * 512 + 100, "truncate --size=%512"), (1000, "not a multiple of 512")] {
            file.set_len(size).unwrap();
            let words = resize(&rig, true).unwrap_err();
            assert!(words.contains(word) && words.contains("disk.img"), "{words}");
        }
        assert_eq!(capacity(&rig), 256);
    }

    fn e13_what_is_in_flight_beyond_a_smaller_end_fails_alone_and_is_not_held(engine) {
        if engine != EngineKind::Plain {
            return;
        }
        let (rig, script) = scripted::start(Builder::new(engine).config(|config| config.on_error = OnError::Hold));
        script.stall();
        for (head, sector) in [(0, 10), (3, 200)] {
            rig.offer(head, &[
                Descriptor::readable(rig.header(head, kind::IN, sector), 16),
                Descriptor::writable(DATA + u64::from(head) * 4096, SECTOR as u32),
                Descriptor::writable(rig.status_byte(head), 1),
            ]);
        }
        rig.kick();
        eventually("both are asked for", || script.asked().len() == 2);
        set_len(&rig, 128);
        resize(&rig, true).unwrap();

        script.unstall();
        rig.queue.wait_used(2);

        assert_eq!((rig.status(0), rig.status(3)), (OK, IOERR));
        assert_eq!(rig.bytes(DATA, SECTOR), pattern(256 * SECTOR, 1)[10 * SECTOR..11 * SECTOR]);
        rig.assert_alive();
    }
}

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn e13_a_driver_never_takes_halves_of_two_sizes_for_one() {
    let builder = Builder::new(EngineKind::Plain);
    let (disk, script) = scripted::disk(&builder);
    let disk: Arc<dyn Backend> = Arc::new(disk);
    let cache = MapCache::new(FakeForeignMemory::new(&[(BASE, 1 << 20)]), Budget::default());
    let transport = Transport::new(disk, Arc::new(NoLine), cache, "disk").unwrap();
    let is_over = AtomicBool::new(false);
    let half = |offset: u64| transport.load(Register::Config as u64 + offset, 4);

    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..20_000_u64 {
                // Sizes whose halves are the same number.
                let sectors = (round % 7 + 1) * 0x1_0000_0001;
                script.size.store(sectors * SECTOR as u64, SeqCst);
                transport.operate(Operation::Resize { shrink: true }).unwrap();
            }
            is_over.store(true, SeqCst);
        });
        let mut whole = 0;
        while !is_over.load(SeqCst) || whole == 0 {
            let before = transport.read(Register::ConfigGeneration);
            let (low, high) = (half(0), half(4));
            if transport.read(Register::ConfigGeneration) == before && before > 0 {
                assert_eq!(low, high, "generation {before}");
                whole += 1;
            }
        }
    });
}
