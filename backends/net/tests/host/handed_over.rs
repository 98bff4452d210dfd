//! Taps handed over by their descriptors.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::harness::{isolated, open, refusal};

#[test]
fn a_tap_can_be_handed_over_by_its_descriptors() {
    isolated("handed_over::a_tap_can_be_handed_over_by_its_descriptors", || {
        let (_, made) = open("tap = 'ours'\nqueues = 2");
        let numbers: Vec<_> = made.iter().map(AsRawFd::as_raw_fd).collect();

        for _start_of_the_guest in 0..2 {
            let (config, taken) = open(&format!("fds = {numbers:?}\nqueues = 2"));
            assert_eq!((taken.len(), config.tap), (2, None));
        }
    });
}

#[test]
fn h10_a_descriptor_that_is_no_taps_or_not_there_is_refused() {
    isolated("handed_over::h10_a_descriptor_that_is_no_taps_or_not_there_is_refused", || {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();

        assert!(refusal(&format!("fds = [{number}]")).contains("not a tap's"));
        drop(file);
        assert!(refusal(&format!("fds = [{number}]")).contains("started without a descriptor"));
        assert!(refusal("fds = [4294967295]").contains("started without a descriptor"));
    });
}
