//! What the guest prints, and who is there to read it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use testkit::driver::{Descriptor, Registers};

use crate::harness::{BUFFER, LARGE, Rig, pattern, transmit, wait_until};
use crate::readers::{connection, has_more, read_up_to, terminal};

/// What is kept for the next reader.
const KEPT: usize = 64 << 10;

#[test]
fn g02_bytes_pass_as_they_are_through_a_pty_and_a_socket() {
    let rig = Rig::multiport("[[port]]\nname = \"agent\"\nsink = \"socket\"");
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.extend(b"\x1b[2J\x1b]0;x\x07\0\r\r\r\n\n\x04\x13\x11\x03");
    let (pty, socket) = (terminal(&rig.place("0")), connection(&rig.place("agent")));

    rig.print(0, &bytes);
    rig.print(1, &bytes);

    assert_eq!(read_up_to(&pty, bytes.len()), bytes);
    assert_eq!(read_up_to(&socket, bytes.len()), bytes);
    assert!(!has_more(&pty) && !has_more(&socket));
    wait_until("all is counted", || rig.counter("bytes_out") == 2 * bytes.len() as u64);
}

#[test]
fn g01_what_nobody_reads_delays_nothing_and_its_end_is_kept_for_the_next_reader() {
    for (sink, place) in [("pty", "0"), ("socket", "0.sock")] {
        let rig = Rig::classic(&format!("sink = \"{sink}\""));
        let bytes = pattern(300_000);

        rig.print(0, &bytes);
        assert_eq!(rig.counter("bytes_dropped"), (bytes.len() - KEPT) as u64);
        let read = match sink {
            "pty" => read_up_to(terminal(&rig.place(place)), KEPT),
            _ => read_up_to(connection(&rig.place(place)), KEPT),
        };

        assert!(read == bytes[bytes.len() - KEPT..], "{sink}: the last screen is there, in order");
        assert_eq!(rig.counter("readers_attached"), 1);
    }
}

#[test]
fn g01_64_mib_without_a_reader_in_requests_of_4_mib() {
    const LEN: u32 = 4 << 20;
    let rig = Rig::classic("");
    for _ in 0..16 {
        let made = rig.request(1, |_| vec![Descriptor::readable(LARGE, LEN)]);
        rig.queue(1).wait_used(made);
    }
    assert_eq!(rig.counter("bytes_dropped"), 16 * u64::from(LEN) - KEPT as u64);
    rig.assert_healthy();
}

#[test]
fn g01_a_reader_that_stops_reading_holds_the_guest_up_once_and_loses_the_middle() {
    let rig = Rig::classic("sink = \"socket\"");
    let reader = connection(&rig.place("0.sock"));
    rig.print(0, b"begin ");
    assert_eq!(read_up_to(&reader, 6), b"begin ");
    let bytes = pattern(2 << 20);

    rig.print(0, &bytes);

    let dropped = rig.counter("bytes_dropped") as usize;
    assert!(dropped > 0 && dropped < bytes.len());
    let read = read_up_to(&reader, bytes.len() - dropped);
    let end = read.len() - KEPT;
    assert!(read[..end] == bytes[..end], "first what fitted before");
    assert!(read[end..] == bytes[bytes.len() - KEPT..], "then the latest");

    rig.print(0, b"attentive again");
    assert_eq!(read_up_to(&reader, 15), b"attentive again");
    assert_eq!(rig.counter("bytes_dropped") as usize, dropped);
}

/// Prints 1 MiB for a reader who takes it in small bites. False if the host did not let him read for so long that he was
/// no longer waited for.
fn loses_nothing(sink: &str, open: impl FnOnce(&Path) -> File + Send) -> bool {
    let rig = Rig::classic(&format!("sink = \"{sink}\""));
    let bytes = pattern(1 << 20);
    let left = AtomicUsize::new(bytes.len());
    let reader = open(&rig.place("0"));
    wait_until("the device knows", || rig.counter("readers_attached") == 1);
    let read = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut read = Vec::<u8>::new();
            while read.len() < left.load(Ordering::SeqCst) {
                if has_more(&reader) {
                    let mut bite = [0; 512];
                    let count = (&reader).read(&mut bite).unwrap();
                    read.extend(&bite[..count]);
                }
            }
            read
        });
        rig.print(0, &bytes);
        left.fetch_sub(rig.counter("bytes_dropped") as usize, Ordering::SeqCst);
        reading.join().unwrap()
    });
    assert_eq!(read.len() + rig.counter("bytes_dropped") as usize, bytes.len(), "what was lost was counted");
    read == bytes
}

#[test]
fn g01_a_slow_reader_that_goes_on_reading_loses_nothing() {
    wait_until("a reader of a pty loses nothing", || loses_nothing("pty", terminal));
    let connect = |path: &Path| File::from(OwnedFd::from(connection(path)));
    wait_until("a reader of a socket loses nothing", || loses_nothing("socket", connect));
}

#[test]
fn g01_a_pty_that_is_closed_and_opened_again_goes_on() {
    let rig = Rig::classic("");
    for round in 0..5 {
        let reader = terminal(&rig.place("0"));
        let bytes = pattern(1000 + round);
        rig.print(0, &bytes);
        assert_eq!(read_up_to(&reader, bytes.len()), bytes);
    }
    assert_eq!(rig.counter("bytes_dropped"), 0);
}

#[test]
fn what_is_printed_between_two_readers_is_for_the_second() {
    let rig = Rig::multiport("sink = \"socket\"\n[[port]]\nname = \"a\"\nsink = \"null\"");
    let first = connection(&rig.place("0"));
    // The null port's end is open from the start.
    assert_eq!((rig.next_control(), rig.next_control()), ((1, 6, 1, vec![]), (0, 6, 1, vec![])));
    rig.print(0, b"one");
    assert_eq!(read_up_to(&first, 3), b"one");
    drop(first);
    assert_eq!(rig.next_control(), (0, 6, 0, vec![]));

    rig.print(0, b"two");

    assert_eq!(read_up_to(connection(&rig.place("0")), 3), b"two");
}

#[test]
fn output_in_many_pieces_and_with_strange_parts_is_read_as_one() {
    let rig = Rig::classic("sink = \"socket\"");
    let reader = connection(&rig.place("0"));
    rig.memory.write(LARGE, b"abcdefgh");

    let made = rig.request(1, |_| {
        vec![
            Descriptor::readable(LARGE, 1),
            Descriptor::readable(LARGE + 1, 0),
            Descriptor::readable(LARGE + 1, 6),
            Descriptor::readable(LARGE + 7, 1),
            // Not for a driver to give (§5.3.6.1), and left alone.
            Descriptor::writable(LARGE + 64, 16),
        ]
    });

    assert_eq!(rig.queue(1).wait_used(made).len, 0);
    assert_eq!(read_up_to(&reader, 8), b"abcdefgh");
}

#[test]
fn g01_a_chain_of_4_gib_costs_the_device_a_reset_and_nothing_else() {
    let rig = Rig::classic("sink = \"socket\"");
    rig.print(0, b"before");
    rig.request(1, |_| vec![Descriptor::readable(LARGE, u32::MAX)]);
    wait_until("the device needs a reset", || rig.transport.status() & 64 != 0);

    rig.transport.reset();
    rig.bring_up(0);
    rig.print(0, b"after");

    assert_eq!(read_up_to(connection(&rig.place("0")), 11), b"beforeafter");
}

#[test]
fn a_reset_while_output_waits_for_a_reader_is_prompt_and_keeps_the_latest() {
    let rig = Rig::classic("sink = \"socket\"");
    let reader = connection(&rig.place("0"));
    wait_until("the device knows", || rig.counter("readers_attached") == 1);
    let bytes = pattern(512 << 10);
    rig.memory.write(LARGE, &bytes);
    rig.request(1, |_| vec![Descriptor::readable(LARGE, bytes.len() as u32)]);
    wait_until("the device has begun with it", || rig.counter("bytes_out") > 0);

    rig.transport.reset();
    rig.bring_up(0);
    rig.print(0, b"after");

    let left = 5 + bytes.len() - rig.counter("bytes_dropped") as usize;
    let read = read_up_to(&reader, left);
    assert!(read.ends_with(b"after") && !has_more(&reader));
}

#[test]
fn last_words_reach_the_reader_when_the_device_goes() {
    let rig = Rig::classic("sink = \"socket\"");
    let reader = connection(&rig.place("0"));
    wait_until("the device knows", || rig.counter("readers_attached") == 1);
    rig.print(0, b"reboot: System halted");
    drop(rig);
    assert_eq!(read_up_to(&reader, 1000), b"reboot: System halted");
}

#[test]
fn empty_output_and_a_full_queue_of_it_are_given_back() {
    let rig = Rig::classic("sink = \"null\"");
    (0..200).for_each(|_| rig.print(0, b""));
    let requests: Vec<_> = (0..60).map(|_| rig.print_later(0, b"0123456789")).collect();
    rig.queue(transmit(0)).wait_used(*requests.last().unwrap());
    wait_until("all is counted", || rig.counter("bytes_out") == 600);
    const _: () = assert!(BUFFER > 10);
}
