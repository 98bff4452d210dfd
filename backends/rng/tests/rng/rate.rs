//! A guest that gets only so many bytes.

use std::time::Instant;

use rustix::io::Errno;
use testkit::driver::Descriptor;
use virtio_backend::Rate;
use virtio_rng::Config;

use crate::harness::{BUFFERS, Mood, Rig, VERSION_1, eventually};

fn rig(mood: Mood, rate: Rate) -> Rig {
    Rig::with(mood, Config { rate: Some(rate) }, VERSION_1)
}

/// Takes what the rate allows, until a buffer has to wait. How often a buffer is filled before depends on how fast the
/// machine is.
fn use_up(rig: &Rig) {
    while rig.counter("waits") == 0 {
        let before = rig.queue.used_idx();
        rig.offer(0, &[Descriptor::writable(BUFFERS, 1000)]);
        eventually("the buffer is filled or waits", || rig.queue.used_idx() != before || rig.counter("waits") > 0);
    }
}

/// Sees that the guest was given no more than the rate allows since `start`.
fn assert_kept(rig: &Rig, start: Instant, Rate { per_second, burst }: Rate) {
    let given = u128::from(rig.counter("bytes"));
    let allowed = u128::from(burst) + start.elapsed().as_nanos() * u128::from(per_second) / 1_000_000_000;
    assert!(given <= allowed, "{given} bytes, not {allowed}");
}

#[test]
fn g05_a_guest_gets_its_burst_and_then_its_rate() {
    let (start, rate) = (Instant::now(), Rate { per_second: 5000, burst: 100 });
    let rig = rig(Mood::Gives(usize::MAX), rate);

    assert_eq!(rig.ask(1000).len(), 100, "the burst");
    for _ in 0..10 {
        let given = rig.ask(1000).len();
        assert!((1..=100).contains(&given), "{given}");
    }

    assert_kept(&rig, start, rate);
}

#[test]
fn g05_a_guest_that_waits_is_counted_once_however_often_it_kicks() {
    let rig = rig(Mood::Gives(usize::MAX), Rate { per_second: 1, burst: 4 });
    use_up(&rig);

    for _ in 0..100 {
        let passes = rig.counter("passes");
        rig.kick();
        eventually("the kick makes a pass", || rig.counter("passes") > passes);
    }

    assert_eq!(rig.counter("waits"), 1);
}

#[test]
fn g05_a_buffer_that_waits_is_filled_without_a_kick() {
    let (start, rate) = (Instant::now(), Rate { per_second: 1000, burst: 64 });
    let rig = rig(Mood::Gives(usize::MAX), rate);
    use_up(&rig);

    rig.queue.wait_used(rig.queue.avail_idx());

    assert_kept(&rig, start, rate);
}

#[test]
fn what_the_source_did_not_give_is_not_charged() {
    let rig = rig(Mood::Fails(Errno::AGAIN.raw_os_error()), Rate { per_second: 1, burst: 1000 });
    rig.offer(0, &[Descriptor::writable(BUFFERS, 1000)]);
    eventually("the source is asked", || rig.source.asked() >= 4);
    rig.source.set(Mood::Gives(300));
    assert_eq!(rig.queue.wait_used(1).len, 300);

    rig.source.set(Mood::Gives(usize::MAX));

    assert!(rig.ask(1000).len() >= 700);
}

#[test]
fn g05_a_reset_does_not_give_the_burst_anew() {
    let (start, rate) = (Instant::now(), Rate { per_second: 500, burst: 1000 });
    let rig = rig(Mood::Gives(usize::MAX), rate);
    use_up(&rig);

    rig.reset();

    assert!(!rig.ask(1000).is_empty());
    assert_kept(&rig, start, rate);
}
