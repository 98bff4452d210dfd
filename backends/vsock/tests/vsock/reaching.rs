//! Connections of the guest's on their way: the device has asked for them, and the answer is to come.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use testkit::driver::Registers;
use virtio_backend::Reach;
use virtio_backend::reach::Then;

use crate::harness::{Guest, PATIENCE, Packet, op, wait_for};

/// Questions that a device may have under way, and connections that it may have.
const MOST_ASKED: usize = 32;
const MOST_CONNECTIONS: u32 = 1024;

/// Whom the device asks, who answers when the test says so.
#[derive(Default)]
struct Slow(Mutex<Vec<(u32, Then)>>);

impl Reach for Slow {
    fn ask(&self, port: u32, then: Then) {
        self.0.lock().unwrap().push((port, then));
    }
}

impl Slow {
    fn asked(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Waits for so many questions, and takes them.
    fn take(&self, count: usize) -> Vec<(u32, Then)> {
        wait_for(|| self.asked() >= count, || format!("{count} questions, there are {}", self.asked()));
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Whom the device asks, who says no at once, as does a process without a broker.
struct Nobody;

impl Reach for Nobody {
    fn ask(&self, _port: u32, then: Then) {
        then.hear(Err(ErrorKind::NotConnected.into()));
    }
}

fn guest() -> (Guest, Arc<Slow>) {
    let slow = Arc::<Slow>::default();
    (Guest::asking(Arc::clone(&slow) as _), slow)
}

/// Gives a connection, and returns its other end.
fn give(then: Then) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    then.hear(Ok(theirs.into()));
    ours
}

fn is_closed(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn others_are_served_while_an_answer_is_due() {
    let (mut guest, slow) = guest();
    guest.send(&Packet::new(op::REQUEST, 5000, 1024));
    let asked = slow.take(1);
    assert_eq!(asked[0].0, 1024);
    guest.expect_nothing();
    let (mut other, request) = guest.accept(80);
    other.write_all(b"data").unwrap();
    assert_eq!(guest.expect(op::RW).dst_port, request.dst_port);

    let mut host = give(asked.into_iter().next().unwrap().1);
    assert_eq!(guest.expect(op::RESPONSE).src_port, 1024);
    guest.send(&Packet::new(op::RW, 5000, 1024).data(b"hello"));
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn g08_of_thousands_of_connections_a_few_are_under_way_at_a_time() {
    let (mut guest, slow) = guest();
    let wanted = 2 * MOST_CONNECTIONS;
    let mut ended = 0;
    let mut hear = |guest: &mut Guest| {
        let packets = std::iter::from_fn(|| guest.try_recv());
        ended += packets.inspect(|packet| assert_eq!(packet.op, op::RST)).count();
        ended
    };
    guest.send_many((0..wanted).map(|port| Packet::new(op::REQUEST, port, 7)), |guest| {
        hear(guest);
    });
    let mut most = 0;
    while hear(&mut guest) < wanted as usize {
        let asked = std::mem::take(&mut *slow.0.lock().unwrap());
        most = most.max(asked.len());
        asked.into_iter().for_each(|(_, then)| then.hear(Err(ErrorKind::ConnectionRefused.into())));
        std::thread::yield_now();
    }
    assert!((1..=MOST_ASKED).contains(&most), "{most} at a time");
    assert_eq!(slow.asked(), 0);
    guest.accept(80);
}

#[test]
fn g08_a_guest_that_gives_up_what_it_asks_for_does_not_make_the_device_ask_for_it() {
    let (mut guest, slow) = guest();
    let both = |port| [Packet::new(op::REQUEST, port, 7), Packet::new(op::RST, port, 7)];
    guest.send_many((0..10_000).flat_map(both), |_| ());
    assert_eq!(slow.asked(), MOST_ASKED);
    let late: Vec<_> = slow.take(MOST_ASKED).into_iter().map(|(_, then)| give(then)).collect();
    assert!(late.iter().all(is_closed), "nobody wants them any more");
    guest.send(&Packet::new(op::REQUEST, 1, 8));
    let asked = slow.take(1);
    assert_eq!(asked.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [8], "of the others, none is asked for");
    guest.assert_alive();
}

#[test]
fn answers_that_come_after_a_reset_are_closed_and_leave_room_for_new_questions() {
    let (mut guest, slow) = guest();
    guest.send_many((0..100).map(|port| Packet::new(op::REQUEST, port, 7)), |_| ());
    let former = slow.take(MOST_ASKED);
    guest.transport.reset();
    guest.start();
    guest.send(&Packet::new(op::REQUEST, 1, 8));
    guest.expect_nothing();
    assert_eq!(slow.asked(), 0, "as many are under way as may be");

    let late: Vec<_> = former.into_iter().map(|(_, then)| give(then)).collect();
    assert!(late.iter().all(is_closed));
    let asked = slow.take(1);
    assert_eq!(asked[0].0, 8);
    let _host = give(asked.into_iter().next().unwrap().1);
    assert_eq!(guest.expect(op::RESPONSE).src_port, 8);
}

#[test]
fn an_answer_that_takes_too_long_is_a_reset_and_is_closed_when_it_comes() {
    let (mut guest, slow) = guest();
    guest.send(&Packet::new(op::REQUEST, 1, 8));
    let asked = slow.take(1);
    assert_eq!(guest.expect(op::RST).dst_port, 1);
    assert_eq!((guest.counter("timeouts"), guest.counter("connections_refused")), (1, 1));
    for (_, then) in asked {
        assert!(is_closed(&give(then)));
    }
    guest.expect_nothing();
}

#[test]
fn a_host_with_too_many_who_wait_is_asked_again_until_it_takes_too_long() {
    let (mut guest, slow) = guest();
    guest.send(&Packet::new(op::REQUEST, 1, 8));
    for (_, then) in slow.take(1) {
        then.hear(Err(io::Error::from(ErrorKind::WouldBlock)));
    }
    let again = slow.take(1);
    let _host = give(again.into_iter().next().unwrap().1);
    assert_eq!(guest.expect(op::RESPONSE).dst_port, 1);

    guest.send(&Packet::new(op::REQUEST, 2, 8));
    let mut answers = 0;
    let reset = loop {
        for (_, then) in std::mem::take(&mut *slow.0.lock().unwrap()) {
            answers += 1;
            then.hear(Err(io::Error::from(ErrorKind::WouldBlock)));
        }
        if let Some(packet) = guest.try_recv() {
            break packet;
        }
        std::thread::yield_now();
    };
    assert_eq!((reset.op, reset.dst_port), (op::RST, 2));
    // Each time it waits as long as it has waited already.
    assert!((2..=10).contains(&answers), "{answers}");
}

#[test]
fn without_anybody_to_ask_the_guest_is_refused_at_once() {
    let mut guest = Guest::asking(Arc::new(Nobody));
    for port in 0..100 {
        guest.send(&Packet::new(op::REQUEST, port, 8));
        assert_eq!(guest.expect(op::RST).dst_port, port);
    }
    assert_eq!(guest.counter("connections_refused"), 100);
    guest.accept(80);
}
