//! The process dies under a guest that uses its console, and another one follows.

use testkit::driver::Registers;

use crate::harness::{F_MULTIPORT, Rig, event};
use crate::readers::{connection, has_more, read_up_to, terminal, write_all};

const TWO: &str = "[[port]]\nname = \"agent\"\nsink = \"socket\"";

#[test]
fn what_was_printed_before_is_there_for_the_next_reader() {
    for (sink, place) in [("pty", "0"), ("socket", "0.sock")] {
        let rig = Rig::classic(&format!("sink = \"{sink}\""));
        rig.print(0, b"first, ");

        let rig = rig.killed();
        rig.print(0, b"second, ");
        let rig = rig.killed();
        rig.print(0, b"third");

        let all = b"first, second, third";
        let read = match sink {
            "pty" => read_up_to(terminal(&rig.place(place)), all.len()),
            _ => read_up_to(connection(&rig.place(place)), all.len()),
        };
        assert_eq!(String::from_utf8_lossy(&read), "first, second, third");
    }
}

#[test]
fn who_has_the_pty_open_goes_on_reading_and_typing() {
    let rig = Rig::classic("");
    let terminal = terminal(&rig.place("0"));
    rig.print(0, b"before");
    assert_eq!(read_up_to(&terminal, 6), b"before");
    write_all(&terminal, b"typed ");
    let rig = rig.killed();

    write_all(&terminal, b"later");
    assert_eq!(rig.read_input(0, 11), b"typed later");
    rig.print(0, b"after");
    assert_eq!(read_up_to(&terminal, 5), b"after");
    assert!(!has_more(&terminal), "nothing twice");
}

#[test]
fn ports_are_introduced_once_and_stay_open() {
    let rig = Rig::multiport(TWO);
    let reader = connection(&rig.place("agent"));
    assert_eq!(rig.next_control(), (1, event::OPEN, 1, vec![]));

    let rig = rig.killed();

    // The connection went with the process.
    assert_eq!(rig.next_control(), (1, event::OPEN, 0, vec![]));
    assert_eq!(read_up_to(&reader, 1), b"");
    let reader = connection(&rig.place("agent"));
    assert_eq!(rig.next_control(), (1, event::OPEN, 1, vec![]));
    write_all(&reader, b"hello");
    assert_eq!(rig.read_input(1, 5), b"hello", "the guest still has it open");
    assert_eq!(rig.untaken_controls(), 0);

    rig.transport.reset();
    rig.bring_up(F_MULTIPORT);
    rig.introduce();
}
