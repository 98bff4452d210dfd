//! Packets that a real tap gets many at a time.
//!
//! All are there before the driver starts the card, so it is certain which go in one pass.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::driver::{Descriptor, Registers};
use virtio_net::engine::HEADER_LEN;

use crate::guest::{CSUM, Guest, MAC, PEER, TX, frame, until};
use crate::isolated::{isolated, run};
use crate::taps::{PLAIN, Peer, network};

/// A frame of the card's with its number in it.
fn numbered(number: u16, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len - 14];
    payload[..2].copy_from_slice(&number.to_be_bytes());
    frame(PEER, MAC, &payload)
}

fn number(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[14], frame[15]])
}

/// A guest whose card has not started; see [`network`].
fn waiting<T>(keys: &str, features: u64, prepare: impl FnOnce(&[OwnedFd]) -> T) -> (Guest, Peer) {
    let (card, peer) = network(keys, |taps| {
        let probed = pwritev2(&taps[0], &[IoSlice::new(&[0])], u64::MAX, ReadWriteFlags::NOWAIT);
        BATCHES.store(probed != Err(Errno::OPNOTSUPP), Relaxed);
        prepare(taps)
    });
    (Guest::before_start(card, features, 64), peer)
}

/// This kernel can write to a tap many packets at a time.
static BATCHES: AtomicBool = AtomicBool::new(false);

/// How many calls so many packets take that take `batched` where the kernel can batch.
fn calls(batched: u64, packets: u64) -> u64 {
    if BATCHES.load(Relaxed) { batched } else { packets }
}

/// Makes a packet available.
fn publish(guest: &Guest, header: &[u8; HEADER_LEN], frame: &[u8]) {
    let packet = [header, frame].concat();
    let address = guest.allocate(packet.len());
    guest.memory.write(address, &packet);
    guest.publish(TX, &[Descriptor::readable(address, packet.len() as u32)]);
}

/// Starts the card, and waits until it has done with `count` packets.
fn start(guest: &Guest, count: u16) {
    guest.start();
    guest.queues[TX].wait_used(count);
    // It counts its system calls when the pass is over.
    until("the calls are counted", || guest.counter("syscalls") > 0);
}

#[test]
fn the_packets_of_a_pass_take_one_system_call_and_keep_their_order() {
    isolated("batches::the_packets_of_a_pass_take_one_system_call_and_keep_their_order", || {
        let (mut guest, peer) = waiting("", 0, |_| {});
        for round in 1..=3 {
            (0..64).for_each(|number| publish(&guest, &PLAIN, &numbered(number, 60 + 20 * usize::from(number))));
            start(&guest, 64);
            for number in 0..64 {
                assert_eq!(peer.take(), numbered(number, 60 + 20 * usize::from(number)));
            }
            until("the calls are counted", || guest.counter("syscalls") >= calls(round, 64 * round));
            assert_eq!(
                (guest.counter("syscalls"), guest.counter("tx_packets")),
                (calls(round, 64 * round), 64 * round)
            );
            guest.transport.reset();
            guest = Guest::before_start(guest.card, 0, 64);
        }
    });
}

#[test]
fn a_few_packets_and_large_ones_take_a_call_each() {
    isolated("batches::a_few_packets_and_large_ones_take_a_call_each", || {
        let (guest, peer) = waiting("mtu = 9000", 0, |_| {});
        run("ip", &["link", "set", "peer", "mtu", "9000"]);
        // 20 small ones in one call, a large one, 15 small ones, two large ones, 16 small ones in one call.
        let lens: Vec<usize> = [vec![60; 20], vec![4000], vec![1000; 15], vec![9000; 2], vec![2036; 16]].concat();
        (0..).zip(&lens).for_each(|(number, len)| publish(&guest, &PLAIN, &numbered(number, *len)));
        start(&guest, 54);
        (0..).zip(&lens).for_each(|(number, len)| assert!(peer.take() == numbered(number, *len), "packet {number}"));
        assert_eq!((guest.counter("syscalls"), guest.counter("tx_packets")), (calls(20, 54), 54));
    });
}

#[test]
fn f02_a_packet_that_the_kernel_refuses_costs_none_of_the_others() {
    isolated("batches::f02_a_packet_that_the_kernel_refuses_costs_none_of_the_others", || {
        let (guest, peer) = waiting("", CSUM, |_| {});
        // A checksum within the IP header: of a form that the card lets pass, and the kernel does not.
        let refused = [1, 0, 0, 0, 0, 0, 14, 0, 2, 0, 0, 0];
        let is_refused = |number: u16| number % 10 == 3;
        for number in 0..64 {
            let header = if is_refused(number) { refused } else { PLAIN };
            publish(&guest, &header, &numbered(number, 60));
        }
        start(&guest, 64);
        for expected in (0..64).filter(|number| !is_refused(*number)) {
            assert_eq!(number(&peer.take()), expected);
        }
        let counted = ["syscalls", "tx_packets", "tx_dropped_malformed", "tx_dropped_host"];
        assert_eq!(counted.map(|name| guest.counter(name)), [calls(1, 64), 57, 7, 0]);
    });
}

#[test]
fn f07_a_tap_that_is_down_costs_each_packet_and_no_more() {
    isolated("batches::f07_a_tap_that_is_down_costs_each_packet_and_no_more", || {
        let (mut guest, peer) = waiting("", 0, |_| {});
        run("ip", &["link", "set", "card", "down"]);
        (0..64).for_each(|number| publish(&guest, &PLAIN, &numbered(number, 60)));
        start(&guest, 64);
        assert_eq!(guest.counter("tx_dropped_host"), 64);
        run("ip", &["link", "set", "card", "up"]);
        guest.restart(0);
        guest.send(&numbered(64, 60));
        assert_eq!(number(&peer.take()), 64);
    });
}

#[test]
fn f07_a_tap_that_is_deleted_takes_the_link_down() {
    isolated("batches::f07_a_tap_that_is_deleted_takes_the_link_down", || {
        let (guest, _peer) = waiting("", 0, |_| {});
        run("ip", &["link", "del", "card"]);
        (0..64).for_each(|number| publish(&guest, &PLAIN, &numbered(number, 60)));
        guest.start();
        guest.queues[TX].wait_used(64);
        assert_eq!(guest.counter("tx_packets"), 0);
        assert_eq!(guest.link_status(), 0);
        assert!(!guest.needs_reset());
    });
}

/// While it lives there is no descriptor to be had, for a ring or anything.
struct NoMoreDescriptors(Rlimit);

impl NoMoreDescriptors {
    fn new() -> Self {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: before.maximum }).unwrap();
        Self(before)
    }
}

impl Drop for NoMoreDescriptors {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

#[test]
fn a_host_without_io_uring_takes_packets_one_by_one() {
    isolated("batches::a_host_without_io_uring_takes_packets_one_by_one", || {
        let (guest, peer) = waiting("", 0, |_| NoMoreDescriptors::new());
        (0..64).for_each(|number| publish(&guest, &PLAIN, &numbered(number, 60)));
        start(&guest, 64);
        (0..64).for_each(|expected| assert_eq!(number(&peer.take()), expected));
        assert_eq!(guest.counter("syscalls"), 64);
    });
}

/// Lets the tap have a few packets under way only, and the peer take them slowly.
fn throttle(descriptors: &[OwnedFd]) {
    let bytes: libc::c_int = 8192;
    #[expect(unsafe_code, reason = "an ioctl")]
    // SAFETY: TUNSETSNDBUF reads one int, which lives until the call returns.
    let returned = unsafe { libc::ioctl(descriptors[0].as_raw_fd(), libc::TUNSETSNDBUF, &raw const bytes) };
    assert_eq!(returned, 0);
    let words = "qdisc add dev peer root tbf rate 4mbit burst 2000 limit 1000000";
    run("tc", &words.split(' ').collect::<Vec<_>>());
}

#[test]
fn f07_packets_wait_for_a_tap_without_room_and_none_overtakes_another() {
    isolated("batches::f07_packets_wait_for_a_tap_without_room_and_none_overtakes_another", || {
        let (guest, peer) = waiting("", 0, throttle);
        (0..64).for_each(|number| publish(&guest, &PLAIN, &numbered(number, 60)));
        guest.start();
        for number in 64..400 {
            let queue = &guest.queues[TX];
            until("the queue has room", || queue.avail_idx().wrapping_sub(queue.used_idx()) < 64);
            guest.send_in(TX, &[&PLAIN[..], &numbered(number, 60)].concat(), &[]);
        }
        let mut came = vec![number(&peer.take())];
        while came.last() != Some(&399) {
            came.push(number(&peer.take()));
        }
        assert!(came.is_sorted_by(|one, next| one < next), "{came:?}");
        guest.queues[TX].wait_used(400);
        assert!(guest.counter("tx_waits") > 0);
        // Of those that found no room while one behind them did.
        assert_eq!(came.len() as u64 + guest.counter("tx_dropped_host"), 400);
    });
}

#[test]
fn f07_packets_that_wait_at_a_reset_are_gone_and_the_next_drivers_go() {
    isolated("batches::f07_packets_that_wait_at_a_reset_are_gone_and_the_next_drivers_go", || {
        let (mut guest, peer) = waiting("", 0, throttle);
        (0..64).for_each(|number| publish(&guest, &PLAIN, &numbered(number, 60)));
        guest.start();
        until("packets wait", || guest.counter("tx_waits") > 0);
        guest.restart(0);
        for number in 100..140 {
            guest.send_in(TX, &[&PLAIN[..], &numbered(number, 60)].concat(), &[]);
        }
        let mut came = vec![number(&peer.take())];
        while came.last() != Some(&139) {
            came.push(number(&peer.take()));
        }
        assert!(came.is_sorted_by(|one, next| one < next), "{came:?}");
        assert!(!guest.needs_reset());
    });
}
