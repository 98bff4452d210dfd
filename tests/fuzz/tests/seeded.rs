//! Inputs made by chance, the same at each run: what needs no search is found here. `make fuzz` searches.

use std::ops::Range;

use fastrand::Rng;
use testkit::cases::each;

/// Bytes of an input, at most.
const LONGEST: usize = 600;

/// Small numbers and large ones, more often than chance would have it.
fn byte(rng: &mut Rng) -> u8 {
    match rng.u8(..4) {
        0 => rng.u8(..4),
        1 => u8::MAX - rng.u8(..2),
        _ => rng.u8(..),
    }
}

fn run_seeds(target: fn(&[u8]), seeds: Range<u64>) {
    each(seeds, |seed| {
        let mut rng = Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..rng.usize(..LONGEST)).map(|_| byte(&mut rng)).collect();
        target(&bytes);
    });
}

#[test]
fn drivers_of_any_kind_get_what_they_may_expect_of_a_disk() {
    run_seeds(fuzz::disk::run, 0..500);
}

#[test]
fn drivers_of_any_kind_get_it_on_another_thread_meanwhile() {
    run_seeds(fuzz::disk::run, 500..1000);
}

#[test]
fn registers_are_what_the_specification_says_whoever_writes_them() {
    run_seeds(fuzz::registers::run, 0..300);
}

#[test]
fn slots_of_any_contents_are_answered() {
    run_seeds(fuzz::slots::run, 0..300);
}

#[test]
fn rings_of_any_contents_are_read_as_the_specification_says() {
    run_seeds(fuzz::rings::run, 0..2000);
}

#[test]
fn lanes_see_the_guests_memory_as_it_is() {
    run_seeds(fuzz::mapcache::run, 0..300);
}

#[test]
fn drivers_of_any_kind_get_random_numbers() {
    run_seeds(fuzz::rng::run, 0..300);
}

#[test]
fn drivers_of_any_kind_get_what_they_may_expect_of_a_network_card() {
    run_seeds(fuzz::net::run, 0..300);
}

#[test]
fn drivers_of_any_kind_get_what_they_may_expect_of_a_console() {
    run_seeds(fuzz::console::run, 0..100);
}

#[test]
fn drivers_of_any_kind_get_what_they_may_expect_of_sockets() {
    run_seeds(fuzz::vsock::run, 0..200);
}

#[test]
fn records_that_somebody_has_changed_never_make_a_fresh_device_of_one_in_use() {
    run_seeds(fuzz::record::run, 0..100);
}

#[test]
fn whole_devices_survive_whatever_happens_at_once() {
    run_seeds(fuzz::device::run, 0..100);
}

#[test]
fn a_client_of_xenstored_copes_with_anything_that_is_said() {
    run_seeds(fuzz::xenstore::run, 0..200);
}

#[test]
fn what_people_write_is_read_or_refused_in_words() {
    run_seeds(fuzz::configuration::run, 0..500);
}

#[test]
fn what_a_worker_says_is_heard_or_ends_it() {
    run_seeds(fuzz::protocol::run, 0..300);
}

#[test]
fn front_ends_of_any_kind_leave_nothing_behind() {
    run_seeds(fuzz::vhost_user::run, 0..100);
}

#[test]
fn backends_of_any_kind_get_no_further_than_their_device() {
    run_seeds(fuzz::bridge::run, 0..100);
}
