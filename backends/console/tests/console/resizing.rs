//! A terminal's size.

use std::path::Path;

use rustix::termios::{Winsize, tcsetwinsize};
use testkit::driver::{Register, Registers};

use crate::harness::{Rig, event, wait_until};
use crate::readers::terminal;

/// Resizes the terminal as our own client does: opening it once more makes the device look.
fn resize(path: &Path, cols: u16, rows: u16) {
    let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal(path), size).unwrap();
    drop(terminal(path));
}

#[test]
fn spec_5_3_4_the_size_stands_in_configuration_space_and_a_change_is_told() {
    let rig = Rig::classic("cols = 80\nrows = 25");
    let _reader = terminal(&rig.place("0"));
    assert_eq!(rig.config_size(), (80, 25));
    let generation = rig.transport.read(Register::ConfigGeneration);

    resize(&rig.place("0"), 200, 50);

    wait_until("the size is known", || rig.config_size() == (200, 50));
    wait_until("the guest is told", || rig.transport.read(Register::InterruptStatus) & 2 != 0);
    assert_ne!(rig.transport.read(Register::ConfigGeneration), generation);
    wait_until("by an interrupt", || rig.line.raised() > 0);
}

#[test]
fn spec_5_3_6_2_with_several_ports_a_message_tells() {
    let rig = Rig::multiport("[[port]]\nname = \"agent\"\nsink = \"null\"");
    assert_eq!(rig.next_control(), (1, event::OPEN, 1, vec![]));
    let _reader = terminal(&rig.place("0"));
    assert_eq!(rig.next_control(), (0, event::OPEN, 1, vec![]));

    resize(&rig.place("0"), 0x0102, 0x0304);

    assert_eq!(rig.next_control(), (0, event::RESIZE, 0, vec![2, 1, 4, 3]));
}

#[test]
fn without_a_size_the_guest_sees_none_and_a_size_of_nothing_changes_none() {
    let rig = Rig::classic("");
    assert_eq!(rig.config_size(), (0, 0));
    resize(&rig.place("0"), 90, 30);
    wait_until("the size is known", || rig.config_size() == (90, 30));
    resize(&rig.place("0"), 0, 0);
    resize(&rig.place("0"), 91, 31);
    wait_until("the size is known", || rig.config_size() == (91, 31));
}
