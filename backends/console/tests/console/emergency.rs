//! `emerg_wr`: output before, or without, a driver that works (virtio 1.2 §5.3.5).

use testkit::driver::Registers;

use crate::harness::{Rig, wait_until};
use crate::readers::{connection, read_up_to, terminal};

const EMERG_WR: u64 = 0x108;

#[test]
fn g03_spec_5_3_5_1_the_low_byte_is_printed_before_any_driver_whatever_the_width() {
    for (sink, place) in [("pty", "0"), ("socket", "0.sock")] {
        let rig = Rig::new(&format!("sink = \"{sink}\""));
        rig.transport.store(EMERG_WR, 1, u64::from(b'a'));
        rig.transport.store(EMERG_WR, 2, 0x5a00 | u64::from(b'b'));
        rig.transport.store(EMERG_WR, 4, 0x5a5a_5a00 | u64::from(b'c'));

        let read = if sink == "pty" {
            read_up_to(terminal(&rig.place(place)), 3)
        } else {
            read_up_to(connection(&rig.place(place)), 3)
        };
        assert_eq!(read, b"abc");
        assert_eq!(rig.counter("emergency_bytes"), 3);
    }
}

#[test]
fn g03_it_works_beside_a_running_driver_and_after_a_reset() {
    let rig = Rig::classic("sink = \"socket\"");
    let reader = connection(&rig.place("0"));
    rig.print(0, b"Oops");
    rig.transport.store(EMERG_WR, 4, u64::from(b'!'));
    assert_eq!(read_up_to(&reader, 5), b"Oops!");
    rig.transport.reset();
    rig.transport.store(EMERG_WR, 1, u64::from(b'?'));
    assert_eq!(read_up_to(&reader, 1), b"?");
}

#[test]
fn g03_of_several_ports_the_first_gets_it() {
    let rig = Rig::new("sink = \"socket\"\n[[port]]\nname = \"agent\"\nsink = \"null\"");
    rig.transport.store(EMERG_WR, 4, u64::from(b'x'));
    assert_eq!(read_up_to(connection(&rig.place("0")), 1), b"x");
}

#[test]
fn g03_writes_beside_it_print_nothing() {
    let rig = Rig::new("sink = \"socket\"");
    for (at, size) in [(0x100, 2), (0x102, 4), (0x104, 4), (0x109, 1), (0x10a, 2), (0x10b, 1), (0x10c, 4)] {
        rig.transport.store(at, size, 0x4141_4141);
    }
    rig.transport.store(EMERG_WR, 1, u64::from(b'x'));
    assert_eq!(read_up_to(connection(&rig.place("0")), 1), b"x");
    assert_eq!(rig.counter("emergency_bytes"), 1);
    assert_eq!(rig.transport.load(EMERG_WR, 4), 0, "it is write-only");
}

#[test]
fn g03_a_flood_without_a_reader_is_bounded() {
    let rig = Rig::new("");
    for n in 0..100_000u64 {
        rig.transport.store(EMERG_WR, 1, n & 0xff);
    }
    assert_eq!(rig.counter("bytes_dropped"), 100_000 - 65_536);
    let read = read_up_to(terminal(&rig.place("0")), 65_536);
    let expected: Vec<u8> = (100_000 - 65_536..100_000u64).map(|n| (n & 0xff) as u8).collect();
    assert!(read == expected);
}

#[test]
fn g03_it_reaches_a_file_that_nobody_drives() {
    let rig = Rig::new("sink = \"file\"\npath = \"DIR/log\"");
    b"panic".iter().for_each(|byte| rig.transport.store(EMERG_WR, 4, u64::from(*byte)));
    wait_until("it is in the file", || std::fs::read(rig.directory.path().join("log")).unwrap() == b"panic");
}
