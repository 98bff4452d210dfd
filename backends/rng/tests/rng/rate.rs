//! A guest that gets only so many bytes.

use std::time::Instant;

use rustix::io::Errno;
use testkit::driver::Descriptor;
use virtio_backend::Rate;
use virtio_rng::Config;

use crate::harness::{BUFFERS, Mood, Rig, VERSION_1, eventually};

fn rig(mood: Mood, per_second: u64, burst: u64) -> Rig {
    Rig::with(mood, Config { rate: Some(Rate { per_second, burst }) }, VERSION_1)
}

#[test]
fn g05_a_guest_gets_its_burst_and_then_its_rate() {
    let start = Instant::now();
    let rig = rig(Mood::Gives(usize::MAX), 5000, 100);

    assert_eq!(rig.ask(1000).len(), 100, "the burst");
    for _ in 0..10 {
        let given = rig.ask(1000).len();
        assert!((1..=100).contains(&given), "{given}");
    }

    let given = rig.counter("bytes");
    assert!(u128::from(given) <= 100 + start.elapsed().as_micros() * 5000 / 1_000_000, "{given}");
    assert!(rig.counter("waits") >= 1);
}

#[test]
fn g05_a_guest_that_waits_is_counted_once_however_often_it_kicks() {
    let rig = rig(Mood::Gives(usize::MAX), 1, 4);
    assert_eq!(rig.ask(4).len(), 4);
    rig.offer(0, &[Descriptor::writable(BUFFERS, 4)]);
    eventually("the guest waits", || rig.counter("waits") == 1);

    for _ in 0..100 {
        let passes = rig.counter("passes");
        rig.kick();
        eventually("the kick makes a pass", || rig.counter("passes") > passes);
    }

    assert_eq!(rig.counter("waits"), 1);
}

#[test]
fn what_the_source_did_not_give_is_not_charged() {
    let rig = rig(Mood::Fails(Errno::AGAIN.raw_os_error()), 1, 1000);
    rig.offer(0, &[Descriptor::writable(BUFFERS, 1000)]);
    eventually("the source is asked", || rig.source.asked() >= 4);
    rig.source.set(Mood::Gives(300));
    assert_eq!(rig.queue.wait_used(1).len, 300);

    rig.source.set(Mood::Gives(usize::MAX));

    assert!(rig.ask(1000).len() >= 700);
}

#[test]
fn g05_a_reset_does_not_give_the_burst_anew() {
    let start = Instant::now();
    let rig = rig(Mood::Gives(usize::MAX), 500, 1000);
    assert_eq!(rig.ask(1000).len(), 1000);
    rig.offer(0, &[Descriptor::writable(BUFFERS, 1000)]);
    eventually("the guest waits", || rig.counter("waits") == 1);

    rig.reset();

    assert!(!rig.ask(1000).is_empty());
    let given = rig.counter("bytes");
    assert!(u128::from(given) <= 1000 + start.elapsed().as_millis() * 500 / 1000, "{given}");
}
