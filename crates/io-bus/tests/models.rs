//! Every order of events between the thread that serves accesses and those that fill, empty and complete: `make models`.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a model reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use io_bus::{Bus, Claim, Completer, Deferral, Device, Space, Window, Written, defer};
use loom::thread;

/// Counts what is written to it. The count is no part of the model.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Counting {
    fn writes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Device for Counting {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) -> Written {
        self.0.fetch_add(1, Ordering::Relaxed);
        Written::Now
    }
}

fn window(start: u64) -> Window {
    Window::new(Space::Mmio, start, 0x200).unwrap()
}

/// An access as the thread that serves them does it. `answered` counts how often it ends.
fn access(bus: &Arc<Bus>, addr: u64, answered: &Arc<AtomicUsize>) {
    let (on, answered) = (Arc::clone(bus), Arc::clone(answered));
    let carry = move || {
        drop(on.write(Space::Mmio, addr, &[0; 4]));
        answered.fetch_add(1, Ordering::Relaxed);
    };
    match bus.awaited(Space::Mmio, addr) {
        None => carry(),
        Some(device) => device.then(carry),
    }
}

#[test]
fn accesses_that_come_while_their_window_is_filled_reach_the_device_once_each() {
    loom::model(|| {
        let (bus, device, answered) = (Bus::new(), Arc::<Counting>::default(), Arc::default());
        let claim = bus.reserve(window(0x1000)).unwrap();
        let pump = thread::spawn({
            let (bus, answered) = (Arc::clone(&bus), Arc::clone(&answered));
            move || (0..2).for_each(|_| access(&bus, 0x1000, &answered))
        });

        claim.fill(Arc::clone(&device) as Arc<dyn Device>);

        pump.join().unwrap();
        assert_eq!((device.writes(), answered.load(Ordering::Relaxed), bus.unclaimed()), (2, 2, 0));
    });
}

#[test]
fn an_access_to_a_window_that_is_given_up_is_answered_once() {
    loom::model(|| {
        let (bus, answered) = (Bus::new(), Arc::default());
        let claim = bus.reserve(window(0x1000)).unwrap();
        let pump = thread::spawn({
            let (bus, answered) = (Arc::clone(&bus), Arc::clone(&answered));
            move || access(&bus, 0x1000, &answered)
        });

        drop(claim);

        pump.join().unwrap();
        assert_eq!((answered.load(Ordering::Relaxed), bus.unclaimed()), (1, 1));
    });
}

#[test]
fn windows_that_go_do_not_disturb_one_that_is_filled() {
    loom::model(|| {
        let (bus, device, answered) = (Bus::new(), Arc::<Counting>::default(), Arc::default());
        let below = bus.reserve(window(0x1000)).unwrap();
        let claim = bus.reserve(window(0x2000)).unwrap();
        let others = thread::spawn(move || drop::<Claim>(below));
        let pump = thread::spawn({
            let (bus, answered) = (Arc::clone(&bus), Arc::clone(&answered));
            move || access(&bus, 0x2000, &answered)
        });

        claim.fill(Arc::clone(&device) as Arc<dyn Device>);

        others.join().unwrap();
        pump.join().unwrap();
        assert_eq!((device.writes(), answered.load(Ordering::Relaxed)), (1, 1));
    });
}

#[test]
fn a_deferred_write_is_answered_once_whoever_is_first() {
    loom::model(|| {
        let ((completer, deferral), answers) = (defer(), Arc::<AtomicUsize>::default());
        let lane = thread::spawn(move || drop::<Completer>(completer));

        deferral.then({
            let answers = Arc::clone(&answers);
            move || {
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });

        lane.join().unwrap();
        assert_eq!(answers.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn what_was_done_before_a_deferral_completes_is_seen_by_its_answer() {
    loom::model(|| {
        let ((completer, deferral), done) = (defer(), Arc::new(loom::sync::atomic::AtomicUsize::new(0)));
        let lane = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                // All that a lane does before it ends a run.
                done.store(1, Ordering::Relaxed);
                drop::<Completer>(completer);
            }
        });

        Deferral::then(deferral, move || assert_eq!(done.load(Ordering::Relaxed), 1));

        lane.join().unwrap();
    });
}
