//! `on_error = "hold"`: what the host fails waits for the operator, and for nothing else.

use std::sync::Arc;

use testkit::device::eventually;
use testkit::driver::Descriptor;
use virtio_backend::Operation;
use virtio_disk::{EngineKind, OnError};

use crate::harness::{Builder, DATA, IOERR, OK, Rig, SECTOR, UNTOUCHED, kind, pattern, segment};
use crate::on_each_engine;
use crate::scripted::{self, Script};

fn holding(engine: EngineKind) -> (Rig, Arc<Script>) {
    scripted::start(Builder::new(engine).config(|config| config.on_error = OnError::Hold))
}

/// Where a chain's data are: none in another's.
fn data_of(head: u16) -> u64 {
    DATA + (16 << 20) + u64::from(head) * 4096
}

/// Writes a sector full of `byte` by chain `head`, and waits for nothing.
fn offer_write(rig: &Rig, head: u16, sector: u64, byte: u8) {
    rig.memory.write(data_of(head), &[byte; SECTOR]);
    rig.offer(
        head,
        &[
            Descriptor::readable(rig.header(head, kind::OUT, sector), 16),
            Descriptor::readable(data_of(head), SECTOR as u32),
            Descriptor::writable(rig.status_byte(head), 1),
        ],
    );
    rig.kick();
}

fn eventually_held(rig: &Rig, held: u64) {
    eventually("requests are held", || rig.counter("held") == held);
}

fn resume(rig: &Rig) -> Result<(), String> {
    rig.disk.operate(Operation::Resume)
}

on_each_engine! {
    fn a_failed_request_waits_for_the_operator_and_nothing_waits_for_it(engine) {
        let (rig, script) = holding(engine);
        script.fail("write", libc::ENOSPC, u32::MAX);
        offer_write(&rig, 3, 5, 7);
        offer_write(&rig, 6, 6, 8);
        eventually_held(&rig, 2);
        assert_eq!(rig.read(0, 8).status, OK);
        assert_eq!((rig.status(3), rig.status(6)), (UNTOUCHED, UNTOUCHED));

        resume(&rig).unwrap();
        eventually("it is tried, and fails again", || rig.counter("host_failures") == 4);
        eventually_held(&rig, 2);

        script.mend();
        resume(&rig).unwrap();
        rig.queue.wait_used(3);

        assert_eq!((rig.status(3), rig.status(6)), (OK, OK));
        assert_eq!(rig.on_disk()[5 * SECTOR..7 * SECTOR], [[7; SECTOR], [8; SECTOR]].concat());
        assert_eq!((rig.counter("held"), rig.counter("held_seconds"), rig.counter("errors")), (0, 0, 0));
        rig.assert_alive();
    }

    fn reads_discards_and_zeroes_wait_as_writes_do(engine) {
        let (rig, script) = holding(engine);
        for what in ["read", "discard", "zeroes"] {
            script.fail(what, libc::EIO, 1);
        }
        rig.memory.write(data_of(3), &segment(0, 8, 0));
        rig.memory.write(data_of(6), &segment(8, 8, 0));
        let parts = [
            (0, kind::IN, Descriptor::writable(data_of(0), SECTOR as u32)),
            (3, kind::DISCARD, Descriptor::readable(data_of(3), 16)),
            (6, kind::WRITE_ZEROES, Descriptor::readable(data_of(6), 16)),
        ];
        for (head, kind, part) in parts {
            let (header, status) = (rig.header(head, kind, 200), rig.status_byte(head));
            rig.offer(head, &[Descriptor::readable(header, 16), part, Descriptor::writable(status, 1)]);
        }
        rig.kick();
        eventually_held(&rig, 3);

        resume(&rig).unwrap();
        rig.queue.wait_used(3);

        assert!([0, 3, 6].iter().all(|&head| rig.status(head) == OK));
        assert_eq!(rig.bytes(data_of(0), SECTOR), pattern(256 * SECTOR, 1)[200 * SECTOR..201 * SECTOR]);
        assert_eq!(rig.on_disk()[8 * SECTOR..16 * SECTOR], [0; 8 * SECTOR]);
    }

    fn what_no_second_try_could_mend_is_told_at_once(engine) {
        let (rig, script) = holding(engine);
        script.fail("write", libc::EINVAL, 1);
        assert_eq!(rig.write(0, &[7; SECTOR]), IOERR);
        script.fail("flush", libc::ENOSPC, 1);
        assert_eq!((rig.flush(), rig.flush()), (IOERR, IOERR));
        assert_eq!(rig.counter("held"), 0);
    }

    fn a_reset_waits_for_no_operator_and_no_later_word_brings_anything_back(engine) {
        let (mut rig, script) = holding(engine);
        script.fail("write", libc::EIO, u32::MAX);
        offer_write(&rig, 3, 5, 7);
        eventually_held(&rig, 1);

        let position = rig.stop().unwrap();

        assert_eq!((position.next_avail, position.next_used, rig.status(3)), (1, 1, IOERR));
        assert_eq!((rig.counter("held"), rig.cache.stats().bytes_pinned), (0, 0));
        script.mend();
        assert!(resume(&rig).unwrap_err().contains("No request"));
        let rig = rig.reset();
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
        rig.assert_alive();
    }

    fn a_disk_that_is_drained_holds_nothing_new(engine) {
        if engine != EngineKind::Plain {
            return;
        }
        let (mut rig, script) = holding(engine);
        script.stall();
        script.fail("write", libc::EIO, u32::MAX);
        offer_write(&rig, 3, 5, 7);
        eventually("it is asked for", || script.asked().len() == 1);
        let unstall = std::thread::spawn({
            let script = Arc::clone(&script);
            move || script.unstall()
        });

        rig.stop();

        unstall.join().unwrap();
        assert_eq!((rig.status(3), rig.counter("held")), (IOERR, 0));
    }

    fn one_word_is_for_all_queues(engine) {
        let builder = Builder::new(engine).config(|config| {
            config.on_error = OnError::Hold;
            config.queues = Some(2);
        });
        let (first, script) = scripted::start(builder);
        let second = Builder::new(engine).lane(1).start_device(Arc::clone(&first.disk));
        script.fail("write", libc::EIO, 2);
        offer_write(&first, 3, 5, 7);
        offer_write(&second, 3, 6, 8);
        eventually_held(&first, 2);

        resume(&first).unwrap();

        first.queue.wait_used(1);
        second.queue.wait_used(1);
        assert_eq!((first.status(3), second.status(3), first.counter("held")), (OK, OK, 0));
    }

    fn a_disk_that_reports_holds_nothing(engine) {
        let (rig, script) = scripted::start(Builder::new(engine));
        script.fail("write", libc::EIO, 1);
        assert_eq!(rig.write(0, &[7; SECTOR]), IOERR);
        assert!(resume(&rig).unwrap_err().contains("on_error"));
    }
}
