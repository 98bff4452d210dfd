//! The process dies under a guest that has connections, and another one follows.

use std::io::{Read, Write};

use testkit::driver::{Descriptor, Registers};

use crate::harness::{EVENT_DATA, Guest, Packet, TX_DATA, op, read_line, wait_for};

impl Guest {
    /// Waits until the device has given so many buffers for events back, and reads that of the last, from this head.
    fn wait_event(&self, count: u16, head: u16) -> Vec<u8> {
        wait_for(|| self.event.used_idx() == count, || format!("event {count}"));
        let used = self.event.used(count - 1);
        assert_eq!(used.id, u32::from(head));
        let mut event = vec![0xee; used.len as usize];
        self.memory.read(EVENT_DATA + 16 * u64::from(head), &mut event);
        event
    }
}

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
const TRANSPORT_RESET: [u8; 4] = [0; 4];

#[test]
fn spec_5_10_6_7_a_guest_hears_that_its_connections_are_gone_and_makes_new_ones() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    (0..3).for_each(|head| guest.offer_event_buffer(head, 4));
    let mut old = guest.connect(7, &listener);
    let (old_caller, _) = guest.accept(80);
    assert_eq!(guest.event.used_idx(), 0, "no process has died");

    guest.kill();

    assert_eq!(guest.wait_event(1, 0), TRANSPORT_RESET);
    assert_eq!(old.read(&mut [0]).unwrap(), 0, "the host's end is closed");
    assert_eq!(read_line(&old_caller), "");
    guest.offer_event_buffer(0, 4);
    old = guest.connect(7, &listener);
    guest.send(&Packet::new(op::RW, 7, 1024).data(b"again"));
    let mut bytes = [0; 5];
    old.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
    assert_eq!(guest.event.used_idx(), 1, "told once");
}

#[test]
fn nothing_begins_before_the_guest_has_heard_of_the_end() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    (0..2).for_each(|head| guest.offer_event_buffer(head, 4));
    let _caller = guest.accept(79);
    guest.kill();
    guest.wait_event(1, 0);

    // A program of the host that connects again at once, and a packet that the guest sends before it looks at events.
    let mut caller = guest.dial(b"");
    caller.write_all(b"CONNECT 80\n").unwrap();
    let sent = guest.tx.used_idx();
    let bytes = Packet::new(op::REQUEST, 7, 1024).bytes();
    guest.memory.write(TX_DATA, &bytes);
    guest.tx.write_chain(0, &[Descriptor::readable(TX_DATA, bytes.len() as u32)]);
    guest.tx.publish(0);
    guest.transport.notify(1);
    wait_for(|| guest.is_idle(), || "the end of a pass".into());
    assert_eq!((guest.tx.used_idx(), guest.try_recv()), (sent, None));

    guest.offer_event_buffer(0, 4);
    let mut begun = [guest.recv(), guest.recv()].map(|packet| (packet.op, packet.dst_port));
    begun.sort_unstable();
    assert_eq!(begun, [(op::REQUEST, 80), (op::RESPONSE, 7)]);
    assert!(listener.1.accept().is_ok());
}

#[test]
fn a_guest_that_is_killed_under_twice_hears_of_both() {
    let mut guest = Guest::new();
    (0..3).for_each(|head| guest.offer_event_buffer(head, 4));
    let _caller = guest.accept(79);
    guest.kill();
    assert_eq!(guest.wait_event(1, 0), TRANSPORT_RESET);

    guest.kill();
    assert_eq!(guest.wait_event(2, 1), TRANSPORT_RESET);

    guest.offer_event_buffer(0, 4);
    guest.accept(80);
}

#[test]
fn a_driver_without_buffers_for_events_or_with_useless_ones_is_served_all_the_same() {
    for buffers in [0, 2] {
        let mut guest = Guest::new();
        (0..buffers).for_each(|head| guest.offer_event_buffer(head, 3));
        let _caller = guest.accept(79);
        guest.kill();
        let (_, request) = guest.accept(80);
        guest.send(&request.answer(op::RST));
        assert!((0..guest.event.used_idx()).all(|nth| guest.event.used(nth).len == 0));
    }
}

#[test]
fn a_driver_that_does_not_come_back_to_events_is_not_waited_for() {
    let mut guest = Guest::new();
    guest.offer_event_buffer(0, 4);
    let _caller = guest.accept(79);
    guest.kill();
    guest.wait_event(1, 0);
    guest.accept(80);
}

#[test]
fn a_driver_that_begins_anew_has_nothing_to_hear() {
    let mut guest = Guest::new();
    let _caller = guest.accept(79);
    guest.transport.reset();
    guest.kill();
    guest.start();
    guest.offer_event_buffer(0, 4);
    guest.accept(80);
    assert_eq!(guest.event.used_idx(), 0);
}
