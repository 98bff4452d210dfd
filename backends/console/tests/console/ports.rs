//! Several ports, and the messages about them.

use std::os::unix::net::UnixStream;

use testkit::driver::{Descriptor, Registers};

use crate::harness::{CONTROL_RECEIVE, F_MULTIPORT, Rig, event, wait_until};
use crate::readers::{connection, read_up_to, terminal, write_all};

const THREE: &str = "name = \"login\"\nsink = \"socket\"\n[[port]]\nname = \"agent\"\nsink = \"socket\"\n\
                     [[port]]\nname = \"log\"\nsink = \"null\"";

#[test]
fn spec_5_3_3_multiport_is_offered_with_several_ports_alone() {
    assert_eq!(Rig::new("").transport.offered_features() & 0b111, 0b101);
    let rig = Rig::new(THREE);
    assert_eq!(rig.transport.offered_features() & 0b111, 0b111);
    assert_eq!(rig.transport.load(0x104, 4), 3, "max_nr_ports");
}

#[test]
fn spec_5_3_6_2_ports_are_introduced_with_their_names() {
    let rig = Rig::new(THREE);
    rig.bring_up(F_MULTIPORT);

    let said = rig.introduce();

    // The last port's end is open from the start; of when that is told nothing is promised.
    let names: Vec<_> = said.into_iter().filter(|message| message.1 != event::OPEN).collect();
    assert_eq!(names[0], (0, event::CONSOLE, 1, vec![]));
    assert_eq!(names[1], (0, event::NAME, 1, b"login".to_vec()));
    assert_eq!(names[2], (1, event::NAME, 1, b"agent".to_vec()));
    rig.assert_healthy();
}

#[test]
fn spec_5_3_6_2_the_guest_hears_of_readers_that_come_and_go() {
    let rig = Rig::multiport(THREE);
    assert_eq!(rig.next_control(), (2, event::OPEN, 1, vec![]));
    for _ in 0..3 {
        let reader = connection(&rig.place("agent"));
        assert_eq!(rig.next_control(), (1, event::OPEN, 1, vec![]));
        drop(reader);
        assert_eq!(rig.next_control(), (1, event::OPEN, 0, vec![]));
        rig.offer_control_buffers(2);
    }
}

#[test]
fn spec_5_3_6_2_the_guest_hears_of_readers_of_a_pty() {
    let rig = Rig::multiport("[[port]]\nname = \"agent\"");
    for _ in 0..3 {
        let reader = terminal(&rig.place("agent"));
        assert_eq!(rig.next_control(), (1, event::OPEN, 1, vec![]));
        drop(reader);
        assert_eq!(rig.next_control(), (1, event::OPEN, 0, vec![]));
        rig.offer_control_buffers(2);
    }
}

#[test]
fn each_port_has_its_own_way_in_and_out() {
    let rig = Rig::multiport(THREE);
    let login = connection(&rig.place("0"));
    let agent = connection(&rig.place("1"));
    rig.print(0, b"login: ");
    rig.print(1, b"pong");
    rig.print(2, b"nobody cares");
    write_all(&login, b"root");
    write_all(&agent, b"ping");

    assert_eq!(read_up_to(&login, 7), b"login: ");
    assert_eq!(read_up_to(&agent, 4), b"pong");
    assert_eq!(rig.read_input(0, 4), b"root");
    assert_eq!(rig.read_input(1, 4), b"ping");
}

#[test]
fn sixteen_ports_work() {
    let ports: String = (1..16).map(|n| format!("[[port]]\nname = \"p{n}\"\nsink = \"socket\"\n")).collect();
    let rig = Rig::multiport(&format!("sink = \"socket\"\n{ports}"));
    for port in 0..16 {
        let reader = connection(&rig.place(&port.to_string()));
        rig.print(port, format!("port {port}").as_bytes());
        let expected = format!("port {port}").into_bytes();
        assert_eq!(read_up_to(&reader, expected.len()), expected);
    }
}

#[test]
fn g04_control_messages_that_make_no_sense_are_counted_and_change_nothing() {
    let rig = Rig::multiport(THREE);
    assert_eq!(rig.next_control(), (2, event::OPEN, 1, vec![]));
    assert_eq!(rig.counter("control_refused"), 0);

    rig.control_bytes(b"");
    rig.control_bytes(&[1, 0, 0, 0, 6, 0, 1]);
    for (id, event, value) in [
        (3, event::READY, 1),
        (u32::MAX, event::OPEN, 1),
        (0x8000_0000, event::OPEN, 1),
        (1, event::READY, 1),
        (1, event::OPEN, 7),
        (1, event::ADD, 1),
        (1, 2, 1),
        (1, event::NAME, 1),
        (1, 0xffff, 0xffff),
    ] {
        rig.control(id, event, value);
    }

    assert_eq!(rig.counter("control_refused"), 11);
    assert_eq!(rig.untaken_controls(), 0, "nothing was answered");
    rig.assert_healthy();
    rig.print(1, b"still here");
    assert_eq!(read_up_to(connection(&rig.place("agent")), 10), b"still here");
}

#[test]
fn g04_what_follows_a_whole_message_is_ignored() {
    let rig = Rig::multiport(THREE);
    let mut close = vec![1, 0, 0, 0, 6, 0, 0, 0];
    close.resize(4000, 0xff);
    rig.control_bytes(&close);
    write_all(connection(&rig.place("agent")), b"ping");
    rig.offer_input_buffer(1, 10);
    rig.control(1, event::OPEN, 1);
    assert_eq!(rig.next_input(1), b"ping");
    assert_eq!(rig.counter("control_refused"), 0);
}

#[test]
fn spec_5_3_6_2_1_a_port_is_added_once_however_often_the_driver_is_ready() {
    let rig = Rig::multiport(THREE);
    rig.next_control();
    (0..10).for_each(|_| rig.control(0, event::DEVICE_READY, 1));
    rig.control(0, event::DEVICE_READY, 0);
    assert_eq!(rig.untaken_controls(), 0);
}

/// One who is let in: the one before may not have been missed yet.
fn attached(rig: &Rig, port: &str) -> UnixStream {
    loop {
        let (let_in, turned_away) = (rig.counter("readers_attached"), rig.counter("readers_refused"));
        let reader = connection(&rig.place(port));
        wait_until("the device has decided", || {
            rig.counter("readers_attached") > let_in || rig.counter("readers_refused") > turned_away
        });
        if rig.counter("readers_attached") > let_in {
            return reader;
        }
    }
}

#[test]
fn g04_without_buffers_for_messages_only_the_latest_state_is_owed() {
    let rig = Rig::new(THREE);
    rig.bring_up(F_MULTIPORT);
    rig.control(0, event::DEVICE_READY, 1);
    rig.offer_control_buffers(3);
    for port in 0..3 {
        assert_eq!(rig.next_control().0, port);
        rig.control(port, event::READY, 1);
    }
    (0..20).for_each(|_| drop(attached(&rig, "agent")));
    let _last = attached(&rig, "agent");

    rig.offer_control_buffers(20);
    let mut opens = Vec::new();
    wait_until("all is told", || {
        while rig.untaken_controls() > 0 {
            opens.push(rig.next_control());
        }
        opens.iter().any(|message| *message == (1, event::OPEN, 1, vec![]))
            && opens.iter().any(|message| *message == (2, event::OPEN, 1, vec![]))
    });
    assert!(opens.len() <= 10, "{opens:?}");
}

#[test]
fn g04_a_buffer_too_small_for_a_message_is_given_back_empty() {
    let rig = Rig::new(THREE);
    rig.bring_up(F_MULTIPORT);
    rig.control(0, event::DEVICE_READY, 1);
    rig.request(CONTROL_RECEIVE, |slot| vec![Descriptor::writable(Rig::buffer(2, slot), 7)]);
    assert_eq!(rig.queue(CONTROL_RECEIVE).wait_used(1).len, 0);
    wait_until("it is counted", || rig.counter("control_refused") == 1);
    rig.assert_healthy();
}

#[test]
fn after_a_reset_everything_is_introduced_anew() {
    let rig = Rig::multiport(THREE);
    rig.transport.reset();
    rig.bring_up(F_MULTIPORT);
    rig.introduce();
    rig.print(1, b"again");
    assert_eq!(read_up_to(connection(&rig.place("agent")), 5), b"again");
}
