//! Statements of virtio 1.2 §5.2 that no other subject has, for disks of all sorts.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use guest_memory::{Budget, MapCache};
use testkit::cases;
use testkit::device::eventually;
use testkit::driver::{Descriptor, RawQueue, Register, Registers};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Backend, Operation};
use virtio_disk::{Cache, Config, Disk, EngineKind, Geometry, Image};
use virtio_mmio::{InterruptLine, Transport};

use crate::harness::{BASE, Builder, F_FLUSH, OK, SECTOR, UNSUPP, UNTOUCHED, kind, pattern, segment};
use crate::{on_each_engine, scripted};

const F_RO: u64 = 1 << 5;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const WRITEBACK: usize = 32;
const MAY_UNMAP: usize = 56;
const UNMAP: u32 = 1;

fn disk(config: &Config) -> Disk {
    let builder = Builder::new(EngineKind::Plain).config(|changed| *changed = config.clone());
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let image = Image::open(&builder.path(), config.access()).unwrap();
    Disk::new(config, image).unwrap()
}

fn byte(disk: &dyn Backend, offset: usize) -> u8 {
    let mut byte = [0xee];
    disk.read_config(offset, &mut byte);
    byte[0]
}

/// Disks of all sorts, as their operators write them.
fn configurations() -> Vec<Config> {
    let mut all = Vec::new();
    for cache in [Cache::Writeback, Cache::Writethrough] {
        for (read_only, discard) in [(false, true), (false, false), (true, true), (true, false)] {
            all.extend([(1, 512), (4, 512), (16, 4096)].map(|(queues, block_size)| Config {
                cache,
                read_only,
                discard,
                queues: Some(queues),
                block_size: Some(block_size),
                ..Config::default()
            }));
        }
    }
    all
}

#[test]
fn spec_5_2_3_nothing_is_offered_that_is_not_served() {
    // BARRIER, GEOMETRY, SCSI, LIFETIME, SECURE_ERASE, ZONED
    cases::each(configurations(), |config| {
        let offered = disk(&config).identity().features;
        for bit in [0, 4, 7, 15, 16, 17] {
            assert_eq!(offered >> bit & 1, 0, "feature {bit}");
        }
        assert_eq!(offered & F_RO != 0, config.read_only);
        assert_eq!(offered & F_MQ != 0, config.queues > Some(1));
        assert_eq!(offered & F_DISCARD != 0, config.discard && !config.read_only);
        assert_eq!(offered & F_WRITE_ZEROES != 0, !config.read_only);
    });
}

#[test]
fn spec_5_2_5_2_who_can_switch_the_cache_can_flush_it() {
    cases::each(configurations(), |config| {
        let offered = disk(&config).identity().features;
        assert!(offered & F_CONFIG_WCE == 0 || offered & F_FLUSH != 0);
        // Without a cache there is nothing to flush, and each write is stable.
        assert_eq!(offered & F_FLUSH != 0, config.cache != Cache::Writethrough);
    });
}

#[test]
fn spec_5_2_5_2_without_flush_writeback_begins_as_0() {
    for (features, writeback) in [(F_FLUSH | F_CONFIG_WCE, 1), (F_CONFIG_WCE, 0), (F_FLUSH, 1), (0, 0)] {
        let disk = disk(&Config::default());
        disk.negotiated(features);
        assert_eq!(byte(&disk, WRITEBACK), writeback, "{features:#x}");
    }
}

#[test]
fn spec_5_2_5_2_what_is_unused_is_zero() {
    cases::each(configurations(), |config| {
        let disk = disk(&config);
        for offset in [33, 57, 58, 59] {
            assert_eq!(byte(&disk, offset), 0, "at {offset}");
            disk.write_config(offset, &[0xff]);
            assert_eq!(byte(&disk, offset), 0, "at {offset}");
        }
    });
}

#[test]
fn spec_5_2_4_a_driver_can_write_no_field_but_writeback() {
    let disk = disk(&Config { queues: Some(2), ..Config::default() });
    disk.negotiated(F_FLUSH | F_CONFIG_WCE);
    let space = || {
        let mut space = [0; 60];
        disk.read_config(0, &mut space);
        space
    };
    let before = space();
    let inputs = [1, 2, 4, 8].into_iter().flat_map(|len| (0..=60 - len).map(move |offset| (offset, len)));
    cases::each(inputs.filter(|input| *input != (WRITEBACK, 1)), |(offset, len)| {
        disk.write_config(offset, &vec![0; len]);
        disk.write_config(offset, &vec![0xff; len]);
        assert_eq!(space(), before);
    });
}

on_each_engine! {
    fn spec_5_2_6_2_a_write_is_stable_when_it_is_answered_unless_the_driver_flushes(engine) {
        let features = [0, F_FLUSH, F_CONFIG_WCE, F_FLUSH | F_CONFIG_WCE];
        let inputs = [Cache::Writeback, Cache::Writethrough].into_iter().flat_map(|cache| {
            features.into_iter().flat_map(move |features| {
                [None, Some(0), Some(1)].map(|switched| (cache, features, switched))
            })
        });
        cases::each(inputs, |(cache, features, switched)| {
            let builder = Builder::new(engine).config(|config| config.cache = cache).features(features);
            let (rig, script) = scripted::start(builder);
            if let Some(value) = switched {
                rig.disk.write_config(WRITEBACK, &[value]);
            }

            assert_eq!(rig.write(0, &[7; SECTOR]), OK);
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(1, 1, 0)), OK);

            let has_cache = cache == Cache::Writeback && features & F_FLUSH != 0;
            let expected: &[_] = match switched {
                _ if !has_cache => &["stable write", "stable zeroes"],
                // What was written before it was switched off is to be stable, too, so that all is flushed.
                Some(0) if features & F_CONFIG_WCE != 0 => &["write", "flush", "zeroes", "flush"],
                _ => &["write", "zeroes"],
            };
            assert_eq!(script.asked(), expected);
        });
    }

    fn spec_5_2_6_2_a_flush_is_answered_when_the_storage_has_flushed(engine) {
        if engine != EngineKind::Plain {
            // What stalls is the script; one engine is enough.
            return;
        }
        let (rig, script) = scripted::start(Builder::new(engine));
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);
        script.stall();
        let header = Descriptor::readable(rig.header(3, kind::FLUSH, 0), 16);
        rig.offer(3, &[header, Descriptor::writable(rig.status_byte(3), 1)]);
        rig.kick();
        eventually("the storage is asked to flush", || script.asked() == ["write", "flush"]);
        assert_eq!((rig.queue.used_idx(), rig.status(3)), (1, UNTOUCHED));

        script.unstall();

        rig.queue.wait_used(2);
        assert_eq!(rig.status(3), OK);
    }

    fn spec_5_2_6_2_zeroes_that_may_not_unmap_keep_their_storage(engine) {
        let contents = pattern(1 << 20, 3);
        let rig = Builder::new(engine).contents(contents).config(|config| config.discard = false).start();
        assert_eq!(byte(&*rig.disk, MAY_UNMAP), 0);
        assert_eq!(rig.flush(), OK);
        let blocks = || std::fs::metadata(&rig.path).unwrap().blocks();
        let before = blocks();

        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(0, 2048, UNMAP)), OK);
        assert_eq!(rig.flush(), OK);

        assert!(blocks() >= before, "{} of {before} blocks are left", blocks());
        assert_eq!(rig.on_disk(), vec![0; 1 << 20]);
    }

    fn spec_5_2_6_2_zones_and_secure_erasure_are_unsupported(engine) {
        let (rig, script) = scripted::start(Builder::new(engine));
        // SECURE_ERASE; ZONE_APPEND, ZONE_REPORT, ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH, ZONE_RESET, ZONE_RESET_ALL;
        // GET_LIFETIME
        for kind in [14, 15, 16, 18, 20, 22, 24, 26, 10] {
            assert_eq!(rig.get(kind, 0, SECTOR).status, UNSUPP, "type {kind}");
            assert_eq!(rig.put(kind, 0, &segment(0, 1, 0)), UNSUPP, "type {kind}");
        }
        assert!(script.asked().is_empty());
    }
}

#[test]
fn spec_5_2_6_2_may_unmap_is_told_where_zeroes_can_give_storage_back() {
    cases::each(configurations(), |config| {
        let can = config.discard && !config.read_only;
        assert_eq!(byte(&disk(&config), MAY_UNMAP), u8::from(can));
    });
    // Storage that gives nothing back.
    let (disk, _) =
        scripted::disk_of(&Builder::new(EngineKind::Plain), |geometry| Geometry { discard_granularity: 0, ..geometry });
    assert_eq!(byte(&disk, MAY_UNMAP), 0);
}

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn spec_5_2_6_2_a_change_of_capacity_is_told() {
    let builder = Builder::new(EngineKind::Plain);
    let (disk, script) = scripted::disk(&builder);
    let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
    let cache = MapCache::new(memory.clone(), Budget::default());
    let transport = Transport::new(Arc::new(disk), Arc::new(NoLine), cache, "disk").unwrap();
    transport.bring_up(1 << 32, &RawQueue::new(memory, BASE, 16));
    for (sectors, changes) in [(256, false), (512, true), (512, false), (100, true)] {
        let generation = transport.read(Register::ConfigGeneration);
        script.size.store(sectors * SECTOR as u64, SeqCst);

        transport.operate(Operation::Resize { shrink: true }).unwrap();

        assert_eq!(transport.acknowledge() & 2 != 0, changes, "to {sectors}");
        assert_eq!(transport.read(Register::ConfigGeneration) != generation, changes);
        assert_eq!(transport.load(Register::Config as u64, 4), sectors);
    }
}
