//! Limits to requests and bytes: what waits, what does not, and what a wait leaves behind.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use testkit::device::eventually;
use testkit::driver::Descriptor;
use virtio_backend::Rate;
use virtio_disk::EngineKind;

use crate::harness::{Builder, DATA, IOERR, OK, Rig, SECTOR, UNTOUCHED, kind, pattern};
use crate::on_each_engine;

/// So slow that no test sees the end of a wait, which is more than an hour for a sector.
const NEVER: Option<Rate> = Some(Rate { per_second: 1, burst: 1 });

/// A disk that has moved a page, more than it may for a long time.
fn used_up(engine: EngineKind) -> Rig {
    let rig = Builder::new(engine).config(|config| config.bandwidth = NEVER).start();
    assert_eq!(rig.read(0, 8).status, OK);
    rig
}

fn offer_read(rig: &Rig, head: u16) {
    rig.offer(
        head,
        &[
            Descriptor::readable(rig.header(head, kind::IN, 0), 16),
            Descriptor::writable(DATA + u64::from(head) * 4096, SECTOR as u32),
            Descriptor::writable(rig.status_byte(head), 1),
        ],
    );
}

on_each_engine! {
    fn what_a_limit_holds_back_is_done_in_the_end(engine) {
        let rig = Builder::new(engine).config(|config| {
            config.iops = Some(Rate { per_second: 2000, burst: 1 });
            config.bandwidth = Some(Rate { per_second: 10 << 20, burst: SECTOR as u64 });
        });
        let rig = rig.start();
        (0..60).for_each(|index| offer_read(&rig, index * 3));
        rig.kick();

        rig.queue.wait_used(60);

        assert!((0..60).all(|index| rig.status(index * 3) == OK));
        assert!(rig.counter("throttled") > 0);
        assert_eq!(rig.counter("reads"), 60);
    }

    fn a_request_larger_than_the_burst_is_no_deadlock(engine) {
        let limit = Some(Rate { per_second: 1 << 40, burst: 1 });
        let rig = Builder::new(engine).config(|config| config.bandwidth = limit).start();
        for _ in 0..10 {
            assert_eq!(rig.write(0, &pattern(200 * SECTOR, 7)), OK);
        }
    }

    fn a_disk_that_waits_neither_spins_nor_holds_up_its_reset(engine) {
        let mut rig = used_up(engine);
        (1..20).for_each(|index| offer_read(&rig, index * 3));
        rig.kick();
        eventually("the lane waits", || rig.counter("throttled") == 1);
        // One that watches whether waiting a moment brings more may be under way.
        thread::sleep(Duration::from_millis(20));
        let before = rig.counters.snapshot().passes;
        thread::sleep(Duration::from_millis(100));
        let passes = rig.counters.snapshot().passes - before;
        assert!(passes < 5, "{passes} passes of a lane that has nothing to do");

        let position = rig.stop().unwrap();

        assert_eq!((position.next_avail, position.next_used), (1, 1), "what waits is still the driver's");
        assert!((1..20).all(|index| rig.status(index * 3) == UNTOUCHED));
        assert_eq!(rig.cache.stats().bytes_pinned, 0);
    }

    fn a_reset_does_not_fill_the_bucket(engine) {
        let rig = used_up(engine).reset();
        offer_read(&rig, 3);
        rig.kick();
        eventually("the lane waits", || rig.counter("throttled") == 1);
        assert_eq!(rig.status(3), UNTOUCHED);
    }

    fn what_costs_nothing_does_not_wait(engine) {
        let rig = used_up(engine);
        assert_eq!(rig.flush(), OK);
        assert_eq!(rig.get(kind::GET_ID, 0, 20).status, OK);
        assert_eq!(rig.read(256, 1).status, IOERR);
        assert_eq!(rig.counter("throttled"), 0);
    }

    fn queues_share_the_limits_of_their_disk(engine) {
        let config = |builder: Builder| {
            builder.config(|config| {
                config.queues = Some(2);
                config.bandwidth = NEVER;
            })
        };
        let first = config(Builder::new(engine)).start();
        let second = Builder::new(engine).lane(1).start_device(Arc::clone(&first.disk));
        assert_eq!(first.read(0, 1).status, OK);

        for (rig, waits) in [(&second, 1), (&first, 2)] {
            offer_read(rig, 3);
            rig.kick();
            eventually("the lane waits", || first.counter("throttled") == waits);
            assert_eq!(rig.status(3), UNTOUCHED);
        }
    }

    fn every_queue_that_waits_is_woken(engine) {
        let limit = Some(Rate { per_second: 500, burst: 1 });
        let first = Builder::new(engine).config(|config| {
            config.queues = Some(2);
            config.iops = limit;
        });
        let first = first.start();
        let second = Builder::new(engine).lane(1).start_device(Arc::clone(&first.disk));
        for rig in [&first, &second] {
            (0..20).for_each(|index| offer_read(rig, index * 3));
            rig.kick();
        }
        for rig in [&first, &second] {
            rig.queue.wait_used(20);
        }
        assert_eq!(first.counter("reads"), 40);
    }
}
