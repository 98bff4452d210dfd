//! A host that has no random numbers: the guest waits, and never gets others.

use std::time::Instant;

use rustix::io::Errno;
use testkit::cases;
use testkit::driver::Descriptor;

use crate::harness::{BUFFERS, Mood, Rig, UNTOUCHED, eventually, random};

const LEN: u32 = 48;

/// Offers a buffer while the source is in this mood, and sees it wait for some tries and then be filled, of which the
/// driver is told.
fn assert_waits_out(mood: Mood) {
    let rig = Rig::new(mood);
    rig.memory.write(BUFFERS, &[UNTOUCHED; LEN as usize]);

    rig.offer(0, &[Descriptor::writable(BUFFERS, LEN)]);

    eventually("the source is asked by the timer", || rig.source.asked() >= 4);
    assert_eq!(rig.queue.used_idx(), 0);
    assert_eq!(rig.bytes(BUFFERS, LEN as usize), [UNTOUCHED; LEN as usize]);
    assert!(rig.counter("source_failures") >= 3);
    let (passes, asked) = (rig.counter("passes"), rig.source.asked());
    assert!(passes <= 8 + 4 * asked, "the lane does not spin: {passes} passes for {asked} tries");

    // No kick from here on.
    rig.source.set(Mood::Gives(usize::MAX));
    assert_eq!(rig.queue.wait_used(1).len, LEN);
    assert_eq!(rig.bytes(BUFFERS, LEN as usize), random(LEN as usize));
    eventually("the driver is interrupted", || rig.line.raised() == 1);
    rig.assert_alive();
}

#[test]
fn g06_a_source_that_gives_nothing_leaves_the_buffer_pending() {
    // What getrandom(2) may say, and what it does not.
    let errors =
        [Errno::AGAIN, Errno::INTR, Errno::IO, Errno::FAULT, Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::NOMEM];
    let failures = errors.map(|errno| Mood::Fails(errno.raw_os_error()));
    cases::each(failures.into_iter().chain([Mood::Gives(0), Mood::Lies]), assert_waits_out);
}

#[test]
fn g06_buffers_that_waited_come_back_in_their_order() {
    let rig = Rig::new(Mood::Fails(Errno::AGAIN.raw_os_error()));
    for head in [2, 0, 1] {
        rig.offer(head, &[Descriptor::writable(BUFFERS + 0x100 * u64::from(head), 8)]);
    }
    eventually("the source is asked", || rig.source.asked() >= 2);

    rig.source.set(Mood::Gives(usize::MAX));

    rig.queue.wait_used(3);
    assert_eq!([0, 1, 2].map(|index| rig.queue.used(index).id), [2, 0, 1]);
}

#[test]
fn g06_kicks_do_not_make_a_failing_source_be_asked_more_often() {
    let rig = Rig::new(Mood::Fails(Errno::AGAIN.raw_os_error()));
    let start = Instant::now();
    rig.offer(0, &[Descriptor::writable(BUFFERS, LEN)]);
    eventually("the source is asked", || rig.source.asked() >= 2);

    // A pass for each kick, rather than one for many.
    for _ in 0..100 {
        let passes = rig.counter("passes");
        rig.kick();
        eventually("the kick makes a pass", || rig.counter("passes") > passes);
    }

    // Two at first, and then ten a second.
    let asked = rig.source.asked();
    assert!(u128::from(asked) <= 3 + start.elapsed().as_millis() / 100, "{asked}");
}

#[test]
fn g06_a_reset_does_not_wait_for_the_source() {
    let rig = Rig::new(Mood::Fails(Errno::AGAIN.raw_os_error()));
    rig.offer(0, &[Descriptor::writable(BUFFERS, LEN)]);
    eventually("the source is asked", || rig.source.asked() >= 2);

    rig.reset();

    rig.source.set(Mood::Gives(usize::MAX));
    assert_eq!(rig.queue.used_idx(), 0, "what was offered before is forgotten");
    rig.assert_alive();
}

#[test]
fn a_process_that_follows_one_that_died_answers_what_waits() {
    let mut rig = Rig::new(Mood::Gives(usize::MAX));
    assert_eq!(rig.ask(8), random(8));
    rig.source.set(Mood::Fails(11));
    rig.offer(0, &[Descriptor::writable(BUFFERS, 16)]);
    eventually("the source is asked", || rig.counter("source_failures") > 0);

    rig.kill();

    rig.source.set(Mood::Gives(usize::MAX));
    assert_eq!(rig.queue.wait_used(2).len, 16);
    rig.assert_alive();
}
