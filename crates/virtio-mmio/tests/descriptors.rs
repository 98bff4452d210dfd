//! A process that has run out of descriptors. Alone in its file: the limit is the process's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use rig::{Rig, VERSION_1};
use rustix::process::{Resource, getrlimit, setrlimit};
use testkit::device::Behaviour;
use testkit::driver::{Register, Registers, status};

#[test]
fn c19_a_device_that_cannot_have_its_lanes_needs_reset_and_recovers() {
    let rig = Rig::new(Behaviour::Echo);
    let queue = rig.queue(0);
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(3), ..before }).unwrap();
    rig.registers.bring_up(VERSION_1, &queue);
    let none_left = std::fs::File::open("/dev/null").is_err();
    setrlimit(Resource::Nofile, before).unwrap();

    assert!(none_left);
    assert_eq!(rig.registers.status(), 15 | status::DEVICE_NEEDS_RESET);
    assert_eq!((rig.registers.read(Register::InterruptStatus), rig.line.raised()), (2, 1));

    rig.registers.reset();
    rig.registers.bring_up(VERSION_1, &queue);
    rig.offer(&queue);
    queue.wait_used(1);
}
