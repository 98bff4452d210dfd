//! Rows E08 to E10 and §5.2.6.2: when a write counts as done, told by what reaches the engine.

use std::sync::Arc;

use virtio_disk::{Cache, EngineKind, Image};

use testkit::device::eventually;
use testkit::driver::Descriptor;

use crate::harness::{Builder, DATA, F_FLUSH, IOERR, OK, Rig, SECTOR, kind, pattern, segment};
use crate::on_each_engine;
use crate::scripted;

/// What the engine is asked for a write, a write-zeroes and a flush.
fn asked_with(engine: EngineKind, cache: Cache, features: u64) -> Vec<&'static str> {
    let builder = Builder::new(engine).config(|config| config.cache = cache).features(features);
    let (rig, script) = scripted::start(builder);
    assert_eq!(rig.write(0, &[7; SECTOR]), OK);
    assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(1, 1, 0)), OK);
    assert_eq!(rig.flush(), OK);
    assert_eq!(rig.on_disk()[..SECTOR], [7; SECTOR]);
    assert_eq!(rig.on_disk()[SECTOR..2 * SECTOR], [0; SECTOR]);
    script.asked()
}

/// VIRTIO_BLK_F_CONFIG_WCE.
const F_CONFIG_WCE: u64 = 1 << 11;

/// Where `writeback` is in configuration space.
const WRITEBACK: usize = 32;

fn writeback(rig: &Rig) -> u8 {
    let mut writeback = [9];
    rig.disk.read_config(WRITEBACK, &mut writeback);
    writeback[0]
}

const CACHED: [&str; 3] = ["write", "zeroes", "flush"];
const STABLE: [&str; 3] = ["stable write", "stable zeroes", "flush"];

on_each_engine! {
    fn e09_with_writeback_a_write_is_durable_when_it_is_flushed(engine) {
        assert_eq!(asked_with(engine, Cache::Writeback, F_FLUSH), CACHED);
    }

    fn e09_with_writethrough_every_write_is_durable_by_itself(engine) {
        assert_eq!(asked_with(engine, Cache::Writethrough, 0), STABLE);
    }

    fn e09_a_driver_that_knows_no_flush_gets_durable_writes(engine) {
        assert_eq!(asked_with(engine, Cache::Writeback, 0), STABLE);
    }

    fn e10_a_cache_that_was_not_offered_cannot_be_switched(engine) {
        let (rig, script) = scripted::start(Builder::new(engine).config(|config| config.cache = Cache::Writethrough));
        rig.disk.write_config(WRITEBACK, &[1]);
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);
        rig.disk.write_config(WRITEBACK, &[0]);
        assert_eq!((writeback(&rig), &script.asked()[..]), (0, &["stable write"][..]));
    }

    fn e10_writes_are_stable_while_the_cache_is_off_and_what_came_before_them_is_too(engine) {
        let (rig, script) = scripted::start(Builder::new(engine).features(F_FLUSH | F_CONFIG_WCE));
        assert_eq!(writeback(&rig), 1);
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);

        rig.disk.write_config(WRITEBACK, &[0]);
        assert_eq!(writeback(&rig), 0);
        assert_eq!(rig.write(1, &[8; SECTOR]), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(2, 1, 0)), OK);
        assert_eq!(rig.read(1, 1).data, [8; SECTOR]);

        rig.disk.write_config(WRITEBACK, &[1]);
        assert_eq!(rig.write(3, &[9; SECTOR]), OK);
        assert_eq!(rig.flush(), OK);

        let asked = ["write", "write", "flush", "zeroes", "flush", "read", "write", "flush"];
        assert_eq!(script.asked(), asked);
        assert_eq!((rig.counter("writes"), rig.counter("zeroings"), rig.counter("flushes")), (3, 1, 1));
    }

    fn e10_nothing_but_one_byte_of_0_or_1_switches_the_cache(engine) {
        let (rig, script) = scripted::start(Builder::new(engine).features(F_FLUSH | F_CONFIG_WCE));
        rig.disk.write_config(WRITEBACK, &[2]);
        rig.disk.write_config(WRITEBACK, &[255]);
        rig.disk.write_config(WRITEBACK, &[0, 0]);
        rig.disk.write_config(WRITEBACK, &[0; 4]);
        (0..60).filter(|&at| at != WRITEBACK).for_each(|at| rig.disk.write_config(at, &[0]));

        assert_eq!(rig.write(0, &[7; SECTOR]), OK);

        assert_eq!((writeback(&rig), &script.asked()[..]), (1, &["write"][..]));
    }

    fn e10_a_reset_brings_the_configured_cache_back(engine) {
        let (rig, script) = scripted::start(Builder::new(engine).features(F_FLUSH | F_CONFIG_WCE));
        rig.disk.write_config(WRITEBACK, &[0]);

        let rig = rig.reset();

        assert_eq!(rig.write(0, &[7; SECTOR]), OK);
        assert_eq!((writeback(&rig), &script.asked()[..]), (1, &["write"][..]));
    }

    fn e10_a_flush_that_a_write_needs_and_that_fails_fails_the_write_and_every_flush_after_it(engine) {
        let (rig, script) = scripted::start(Builder::new(engine).features(F_FLUSH | F_CONFIG_WCE));
        rig.disk.write_config(WRITEBACK, &[0]);
        script.fail("flush", libc::EIO, 1);

        assert_eq!(rig.write(0, &[7; SECTOR]), IOERR);
        assert_eq!(rig.write(0, &[7; SECTOR]), IOERR);
        assert_eq!(rig.flush(), IOERR);
        assert_eq!(rig.read(0, 1).status, OK);
    }

    fn e10_a_write_in_flight_while_the_cache_is_switched_off_and_on_is_done_once(engine) {
        if engine != EngineKind::Plain {
            // What stalls is the script; one engine is enough.
            return;
        }
        let (rig, script) = scripted::start(Builder::new(engine).features(F_FLUSH | F_CONFIG_WCE));
        script.stall();
        for (head, sector) in [(0, 0), (3, 1), (6, 2)] {
            rig.memory.write(DATA, &[5; SECTOR]);
            rig.offer(head, &[
                Descriptor::readable(rig.header(head, kind::OUT, sector), 16),
                Descriptor::readable(DATA, SECTOR as u32),
                Descriptor::writable(rig.status_byte(head), 1),
            ]);
            rig.kick();
            eventually("the write is asked for", || script.asked().len() == usize::from(head / 3) + 1);
            rig.disk.write_config(WRITEBACK, &[head as u8 / 3 % 2]);
        }
        script.unstall();

        rig.queue.wait_used(3);

        assert!([0, 3, 6].iter().all(|&head| rig.status(head) == OK));
        // The second was submitted with the cache off.
        assert_eq!(script.asked(), ["write", "write", "write", "flush"]);
        assert_eq!(rig.on_disk()[..3 * SECTOR], [5; 3 * SECTOR]);
    }

    fn e08_after_a_failed_flush_none_succeeds_until_the_reset(engine) {
        let (rig, script) = scripted::start(Builder::new(engine));
        script.fail("flush", libc::EIO, 1);
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);

        assert_eq!(rig.flush(), IOERR);

        // The kernel would say that all is well: it has told of the failure once.
        assert_eq!(rig.flush(), IOERR);
        assert_eq!(rig.write(1, &[8; SECTOR]), OK);
        assert_eq!(rig.flush(), IOERR);
        assert_eq!((rig.counter("errors"), rig.counter("host_failures")), (3, 1));
        assert_eq!(rig.read(0, 1).status, OK);

        let rig = rig.reset();
        assert_eq!(rig.flush(), OK);
    }

    fn e08_a_failed_flush_concerns_all_queues_until_all_are_reset(engine) {
        let (mut first, script) = scripted::start(Builder::new(engine).config(|config| config.queues = Some(2)));
        let mut second = Builder::new(engine).lane(1).start_device(Arc::clone(&first.disk));
        script.fail("flush", libc::EIO, 1);

        assert_eq!((first.flush(), second.flush()), (IOERR, IOERR));

        first.stop();
        second.stop();
        assert_eq!((first.reset().flush(), second.reset().flush()), (OK, OK));
    }

    fn e14_a_hole_in_an_image_reads_as_zeroes_and_can_be_written(engine) {
        let builder = Builder::new(engine).contents(Vec::new());
        std::fs::File::create(builder.path()).unwrap().set_len(1 << 20).unwrap();
        let image = Image::open(&builder.path(), builder.config.access()).unwrap();
        let rig = builder.start_over(image);
        assert_eq!(rig.read(100, 4).data, [0; 4 * SECTOR]);
        assert_eq!(rig.write(2047, &pattern(SECTOR, 3)), OK);
        assert_eq!(rig.on_disk()[2047 * SECTOR..], pattern(SECTOR, 3));
    }
}
