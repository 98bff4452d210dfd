//! A disk whose process dies under its driver, and the one that goes on from the record.

use std::mem;
use std::sync::Arc;

use testkit::device::eventually;
use testkit::driver::Descriptor;
use virtio_backend::{Operation, Record};
use virtio_disk::{Cache, OnError};

use crate::harness::{Builder, DATA, F_FLUSH, IOERR, OK, Rig, SECTOR, UNTOUCHED, kind, pattern, segment};
use crate::on_each_engine;
use crate::scripted::{self, Script};

/// VIRTIO_BLK_F_CONFIG_WCE.
const F_CONFIG_WCE: u64 = 1 << 11;

/// Where `writeback` is in configuration space.
const WRITEBACK: usize = 32;

/// A disk at work with a record, on a guest's memory of its own.
fn first(builder: Builder) -> (Rig, Arc<Script>, Record) {
    let record = Record::new().unwrap();
    let (rig, script) = scripted::start(builder.features(F_FLUSH | F_CONFIG_WCE).record(&record));
    (rig, script, record)
}

/// The process of `former` dies; another takes its place, over an image of its own whose engines are told to be as
/// `prepare` says.
fn follow(former: Rig, builder: Builder, record: &Record, prepare: impl FnOnce(&Script)) -> (Rig, Arc<Script>) {
    let builder = builder.features(F_FLUSH | F_CONFIG_WCE).record(record).following(&former.memory);
    // Nothing kicks its lane any more, and nothing waits for what it has begun.
    mem::forget(former);
    let (disk, script) = scripted::disk(&builder);
    prepare(&script);
    (builder.start_device(Arc::new(disk)), script)
}

/// The same without anything in flight: its lane has ended, and does not see what the driver asks of the other.
fn follow_idle(mut former: Rig, builder: Builder, record: &Record) -> (Rig, Arc<Script>) {
    former.stop();
    follow(former, builder, record, |_| {})
}

/// What the driver reads: the capacity in sectors, and the cache's switch.
fn config(rig: &Rig) -> (u64, u8) {
    let (mut sectors, mut writeback) = ([0; 8], [9]);
    rig.disk.read_config(0, &mut sectors);
    rig.disk.read_config(WRITEBACK, &mut writeback);
    (u64::from_le_bytes(sectors), writeback[0])
}

/// Where a chain's data are: none in another's.
fn data_of(head: u16) -> u64 {
    DATA + u64::from(head) * 4096
}

/// Makes a request of a sector's data or less available, and waits for nothing.
fn offer(rig: &Rig, head: u16, kind: u32, sector: u64, data: Option<Descriptor>) {
    let mut chain = vec![Descriptor::readable(rig.header(head, kind, sector), 16)];
    chain.extend(data);
    chain.push(Descriptor::writable(rig.status_byte(head), 1));
    rig.offer(head, &chain);
}

fn offer_write(rig: &Rig, head: u16, sector: u64, data: &[u8]) {
    rig.memory.write(data_of(head), data);
    offer(rig, head, kind::OUT, sector, Some(Descriptor::readable(data_of(head), data.len() as u32)));
}

on_each_engine! {
    fn every_kind_of_request_in_flight_is_done_by_the_process_that_follows(engine) {
        let (rig, script, record) = first(Builder::new(engine));
        script.stall();
        offer_write(&rig, 0, 3, &[1; SECTOR]);
        rig.memory.write(data_of(3), &segment(4, 2, 1));
        offer(&rig, 3, kind::WRITE_ZEROES, 0, Some(Descriptor::readable(data_of(3), 16)));
        rig.memory.write(data_of(6), &segment(8, 8, 0));
        offer(&rig, 6, kind::DISCARD, 0, Some(Descriptor::readable(data_of(6), 16)));
        offer(&rig, 9, kind::IN, 20, Some(Descriptor::writable(data_of(9), SECTOR as u32)));
        offer(&rig, 12, kind::FLUSH, 0, None);
        rig.kick();
        eventually("all of them are asked for", || script.asked().len() == 5);

        let (rig, _) = follow(rig, Builder::new(engine), &record, |_| {});
        rig.queue.wait_used(5);

        assert!([0, 3, 6, 9, 12].iter().all(|&head| rig.status(head) == OK));
        let (before, after) = (pattern(256 * SECTOR, 1), rig.on_disk());
        assert_eq!(rig.bytes(data_of(9), SECTOR), before[20 * SECTOR..21 * SECTOR]);
        assert_eq!(after[..3 * SECTOR], before[..3 * SECTOR]);
        assert_eq!(after[3 * SECTOR..4 * SECTOR], [1; SECTOR]);
        assert_eq!(after[4 * SECTOR..6 * SECTOR], [0; 2 * SECTOR]);
        assert_eq!(after[16 * SECTOR..], before[16 * SECTOR..]);
        rig.assert_alive();
    }

    fn writes_that_were_done_and_not_told_are_done_again_to_the_same_end(engine) {
        let (rig, script, record) = first(Builder::new(engine));
        script.stall();
        offer_write(&rig, 0, 3, &[1; SECTOR]);
        rig.kick();
        eventually("the first is asked for", || script.asked().len() == 1);
        // The driver may have two writes to one place in flight only if either may win.
        offer_write(&rig, 3, 4, &[2; SECTOR]);
        let mut contents = pattern(256 * SECTOR, 1);
        contents[3 * SECTOR..4 * SECTOR].fill(1);

        let (rig, script) = follow(rig, Builder::new(engine).contents(contents.clone()), &record, |_| {});
        rig.queue.wait_used(2);

        contents[4 * SECTOR..5 * SECTOR].fill(2);
        assert_eq!((rig.status(0), rig.status(3)), (OK, OK));
        assert_eq!(script.asked(), ["write", "write"]);
        assert!(rig.on_disk() == contents);
    }

    fn what_is_held_is_held_again_until_the_operator_resumes_it(engine) {
        let hold = || Builder::new(engine).config(|config| config.on_error = OnError::Hold);
        let (rig, script, record) = first(hold());
        script.fail("write", libc::ENOSPC, u32::MAX);
        offer_write(&rig, 3, 5, &[7; SECTOR]);
        offer_write(&rig, 6, 6, &[8; SECTOR]);
        rig.kick();
        eventually("both are held", || rig.counter("held") == 2);

        let (rig, script) = follow(rig, hold(), &record, |script| script.fail("write", libc::ENOSPC, u32::MAX));
        eventually("both are held again", || rig.counter("held") == 2);
        assert_eq!((rig.status(3), rig.status(6), rig.queue.used_idx()), (UNTOUCHED, UNTOUCHED, 0));
        script.mend();
        rig.disk.operate(Operation::Resume).unwrap();
        rig.queue.wait_used(2);

        assert_eq!((rig.status(3), rig.status(6)), (OK, OK));
        assert_eq!(rig.on_disk()[5 * SECTOR..7 * SECTOR], [[7; SECTOR], [8; SECTOR]].concat());
        rig.assert_alive();
    }

    fn a_cache_that_the_driver_switched_off_stays_off_and_can_be_switched_on(engine) {
        let (rig, _, record) = first(Builder::new(engine));
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);
        rig.disk.write_config(WRITEBACK, &[0]);

        let (rig, script) = follow_idle(rig, Builder::new(engine), &record);
        assert_eq!(config(&rig), (256, 0));
        assert_eq!(rig.write(1, &[8; SECTOR]), OK);
        // What came before may have been left to a flush that will not be asked for.
        assert_eq!(script.asked(), ["write", "flush"]);
        rig.disk.write_config(WRITEBACK, &[1]);
        assert_eq!((config(&rig), rig.write(2, &[9; SECTOR])), ((256, 1), OK));
        assert_eq!(script.asked(), ["write", "flush", "write"]);
    }

    fn a_disk_that_is_configured_without_a_cache_has_none_whatever_the_record_says(engine) {
        let (rig, _, record) = first(Builder::new(engine));
        assert_eq!(config(&rig).1, 1);
        let without = Builder::new(engine).config(|config| config.cache = Cache::Writethrough);
        let (rig, script) = follow_idle(rig, without, &record);
        assert_eq!((config(&rig).1, rig.write(0, &[7; SECTOR])), (0, OK));
        assert_eq!(script.asked(), ["stable write"]);
    }

    fn after_a_failed_flush_none_succeeds_in_the_process_that_follows_either(engine) {
        let (rig, script, record) = first(Builder::new(engine));
        script.fail("flush", libc::EIO, 1);
        assert_eq!(rig.flush(), IOERR);

        let (rig, script) = follow_idle(rig, Builder::new(engine), &record);
        assert_eq!((rig.flush(), rig.write(1, &[8; SECTOR]), rig.flush()), (IOERR, OK, IOERR));
        assert_eq!(script.asked(), ["write"]);

        let rig = rig.reset();
        assert_eq!(rig.flush(), OK);
        let (rig, _) = follow_idle(rig, Builder::new(engine), &record);
        assert_eq!(rig.flush(), OK);
    }

    fn a_driver_goes_on_with_the_capacity_that_it_was_told(engine) {
        let grown = || Builder::new(engine).contents(pattern(512 * SECTOR, 1));
        let (rig, script, record) = first(Builder::new(engine));

        // Nobody has told the driver of what was added meanwhile.
        let (rig, _) = follow_idle(rig, grown(), &record);
        assert_eq!((config(&rig).0, rig.read(255, 1).status, rig.read(256, 1).status), (256, OK, IOERR));
        rig.disk.operate(Operation::Resize { shrink: false }).unwrap();
        assert_eq!((config(&rig).0, rig.read(511, 1).status), (512, OK));

        let (rig, _) = follow_idle(rig, grown(), &record);
        assert_eq!((config(&rig).0, rig.read(511, 1).status), (512, OK));

        // What is not there cannot be had, whatever the record says.
        let (rig, _) = follow_idle(rig, Builder::new(engine), &record);
        assert_eq!((config(&rig).0, rig.write(256, &[7; SECTOR])), (256, IOERR));
        assert_eq!(rig.on_disk().len(), 256 * SECTOR);
        drop(script);
    }

    fn a_note_that_makes_no_sense_is_read_as_the_worst_until_the_driver_resets_the_disk(engine) {
        for note in ["", "{\"cache\":255}", "{\"cache\":1,\"sectors\":-1,\"flush_failed\":false}"] {
            let record = Record::new().unwrap();
            record.device().store(&note).unwrap();
            let (rig, script) = follow_idle(Rig::new(engine), Builder::new(engine), &record);
            assert_eq!((config(&rig), rig.flush(), rig.write(0, &[7; SECTOR])), ((256, 0), IOERR, IOERR));
            assert_eq!(rig.read(0, 1).status, OK);
            assert_eq!(script.asked(), ["write", "flush", "read"]);
            let rig = rig.reset();
            assert_eq!((config(&rig).1, rig.flush()), (1, OK));
        }
    }
}
