//! A thousand drivers, the same at each run: what needs no search is found here. `make soak` searches.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;

/// Drivers of one test.
const DRIVERS: u64 = 500;

/// Bytes that a driver is made of, at most.
const LONGEST: usize = 600;

fn run_drivers(from: u64) {
    for seed in from..from + DRIVERS {
        let mut rng = Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..rng.usize(..LONGEST)).map(|_| byte(&mut rng)).collect();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| fuzz::run(&bytes))) {
            eprintln!("it was the driver of seed {seed}");
            resume_unwind(panic);
        }
    }
}

/// Small numbers and large ones, more often than chance would have it.
fn byte(rng: &mut Rng) -> u8 {
    match rng.u8(..4) {
        0 => rng.u8(..4),
        1 => u8::MAX - rng.u8(..2),
        _ => rng.u8(..),
    }
}

#[test]
fn drivers_of_any_kind_get_what_they_may_expect() {
    run_drivers(0);
}

#[test]
fn drivers_of_any_kind_get_it_on_another_thread_meanwhile() {
    run_drivers(DRIVERS);
}
