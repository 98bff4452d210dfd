//! A host that runs out of descriptors. A process of its own, as the limit is the process's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, dead_code, reason = "shared with tests that use all of it")]

#[path = "../vsock/harness.rs"]
mod harness;

use std::fs::File;

use harness::{Guest, Packet, op, read_line};
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn h08_a_host_without_descriptors_lets_programs_wait_and_refuses_the_guest() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let before = guest.accept(80);

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(64);
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    // One for the program's own end.
    hoard.pop();
    let mut host = guest.dial(b"CONNECT 81\n");
    // It tries again and again.
    guest.wait_counter("host_failures", 3);

    guest.send(&Packet::new(op::REQUEST, 500, 1));
    assert_eq!(guest.expect(op::RST).dst_port, 500);

    drop(hoard);
    let request = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 81);
    guest.send(&request.answer(op::RESPONSE));
    assert!(read_line(&host).starts_with("OK "));
    let _other = guest.connect(500, &listener);
    std::io::Write::write_all(&mut host, b"x").unwrap();
    assert_eq!(guest.expect(op::RW).data, b"x");
    drop(before);
}
