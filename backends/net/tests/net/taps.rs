//! A card over a real tap: on one side of a bridge, with a tap of the test's on the other side.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::driver::Descriptor;
use virtio_backend::{Backend, Kind, reach};
use virtio_net::Net;
use virtio_net::engine::{HEADER_LEN, MAX_FRAME};

use crate::guest::{
    CSUM, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, Guest, HOST_TSO4, MAC, MQ, MRG_RXBUF, PEER, RX, STATUS, TX, for_card,
    from_card, until,
};
use crate::isolated::{ip, isolated, open};

const TSO: u64 = CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4;

/// Before each packet of the test's own.
pub const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// The test's end of the network.
pub struct Peer(OwnedFd);

impl Peer {
    fn put(&self, header: &[u8; HEADER_LEN], frame: &[u8]) {
        rustix::io::write(&self.0, &[header, frame].concat()).unwrap();
    }

    /// The next packet of the guest's: others are the bridge's own.
    pub fn take(&self) -> Vec<u8> {
        loop {
            let mut packet = vec![0; HEADER_LEN + MAX_FRAME];
            match rustix::io::read(&self.0, &mut packet) {
                Ok(len) if packet[HEADER_LEN + 6..HEADER_LEN + 12] == MAC => return packet[HEADER_LEN..len].to_vec(),
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
                    let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)).unwrap();
                    assert_eq!(ready, 1, "the card should have sent a packet");
                }
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

/// A card of these keys, in a network of its own. Before it is made its descriptors are `prepare`d; what that returns is
/// dropped afterwards.
pub fn network<T>(keys: &str, prepare: impl FnOnce(&[OwnedFd]) -> T) -> (Arc<dyn Backend>, Peer) {
    // Nobody is to send what the test has not asked for.
    for who in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{who}/disable_ipv6"), "1").unwrap();
    }
    ip("link add br0 type bridge mcast_snooping 0");
    ip("link set br0 up");
    let (config, descriptors) = open(&format!("tap = 'card'\nbridge = 'br0'\nmac = '00:16:3e:01:02:03'\n{keys}"));
    let (_, mut peer) = open("tap = 'peer'\nbridge = 'br0'");
    let _until_it_is_made = prepare(&descriptors);
    let card = Net::make(&config, descriptors, reach::directly::<Net>(&config)).unwrap();
    (card, Peer(peer.remove(0)))
}

/// A guest with a card of these keys, in a network of its own.
fn boot(keys: &str, features: u64) -> (Guest, Peer) {
    let (card, peer) = network(keys, |_| {});
    let guest = Guest::with_card(card, features);
    // Once it has sent, the card is set up, and the bridge knows where it is.
    guest.send(&from_card(60, 0x11));
    assert_eq!(peer.take(), from_card(60, 0x11));
    (guest, peer)
}

/// Both directions work.
fn assert_alive(guest: &Guest, peer: &Peer) {
    assert!(!guest.needs_reset());
    guest.send(&from_card(60, 0x55));
    assert_eq!(peer.take(), from_card(60, 0x55));
    let before = guest.counter("rx_packets");
    guest.post_many(4, 2000);
    peer.put(&PLAIN, &for_card(60, 0x56));
    until("a packet is received", || guest.counter("rx_packets") > before);
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a TCP checksum counts beside its segment: 10.0.0.1, 10.0.0.2, protocol, length.
fn pseudo_header(segment: usize) -> [u8; 12] {
    let [high, low] = (segment as u16).to_be_bytes();
    [10, 0, 0, 1, 10, 0, 0, 2, 0, 6, high, low]
}

/// A TCP packet over IPv4 with `payload`, and only the checksum of its pseudo-header, as offloading wants it.
fn tcp(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut tcp =
        [&[0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0][..], payload].concat();
    let partial = !checksum(&pseudo_header(tcp.len()));
    tcp[16..18].copy_from_slice(&partial.to_be_bytes());
    let len = (20 + tcp.len()) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&to[..], &from, &[8, 0], &ip, &tcp].concat()
}

/// The payload of a TCP packet, if its checksum is right.
fn payload(frame: &[u8]) -> &[u8] {
    let segment = &frame[34..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))];
    assert_eq!(checksum(&[&pseudo_header(segment.len()), segment].concat()), 0, "a wrong checksum");
    &segment[20..]
}

/// NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1448, checksum of TCP at 34.
const CUT: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn packets_go_through_a_bridge() {
    isolated("taps::packets_go_through_a_bridge", || {
        let (guest, peer) = boot("", MRG_RXBUF);
        for seed in 0..50 {
            guest.send(&from_card(60 + 29 * usize::from(seed), seed));
            assert_eq!(peer.take(), from_card(60 + 29 * usize::from(seed), seed));
            let address = guest.post(2000);
            peer.put(&PLAIN, &for_card(60 + 29 * usize::from(seed), seed));
            guest.wait_rx(u16::from(seed) + 1);
            assert_eq!(guest.bytes(address + 12, 60), for_card(60 + 29 * usize::from(seed), seed)[..60]);
        }
        assert_eq!(guest.counter("tx_packets"), 51);
        assert!(guest.counter("syscalls") >= 100);
    });
}

#[test]
fn a_large_packet_of_the_drivers_goes_with_one_call_and_is_cut_by_the_host() {
    isolated("taps::a_large_packet_of_the_drivers_goes_with_one_call_and_is_cut_by_the_host", || {
        let (guest, peer) = boot("", TSO);
        let data: Vec<u8> = (0..60_000u32).map(|at| (at % 251) as u8).collect();
        guest.send_with(&CUT, &tcp(PEER, MAC, &data));
        assert_eq!((guest.counter("tx_packets"), guest.counter("tx_dropped_malformed")), (2, 0));
        let mut got = Vec::new();
        while got.len() < data.len() {
            let segment = peer.take();
            assert!(segment.len() <= 1514);
            got.extend_from_slice(payload(&segment));
        }
        assert!(got == data);
    });
}

#[test]
fn f05_the_host_cuts_packets_for_a_driver_that_does_not_and_leaves_them_whole_for_one_that_does() {
    isolated(
        "taps::f05_the_host_cuts_packets_for_a_driver_that_does_not_and_leaves_them_whole_for_one_that_does",
        || {
            let (mut guest, peer) = boot("", TSO | MRG_RXBUF);
            let data: Vec<u8> = (0..40_000u32).map(|at| (at % 241) as u8).collect();
            let packet = tcp(MAC, PEER, &data);
            let receive = |guest: &Guest, used: u16| {
                let buffers: Vec<_> = (0..60).map(|_| guest.post(1600)).collect();
                peer.put(&CUT, &packet);
                guest.wait_rx(used);
                (0..used)
                    .map(move |at| guest.bytes(buffers[usize::from(at)], guest.queues[RX].used(at).len as usize))
                    .collect::<Vec<_>>()
            };
            let whole = receive(&guest, ((HEADER_LEN + packet.len()).div_ceil(1600)) as u16).concat();
            assert_eq!(guest.counter("rx_packets"), 1);
            assert_eq!(whole.len(), HEADER_LEN + packet.len());
            assert_eq!(whole[..10], CUT[..10]);
            assert!(whole[HEADER_LEN + 54..] == data);

            guest.restart(MRG_RXBUF);
            guest.send(&from_card(60, 1));
            let cut = receive(&guest, 40_000u32.div_ceil(1448) as u16);
            let mut got = Vec::new();
            for packet in &cut {
                assert_eq!(packet[..HEADER_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                got.extend_from_slice(payload(&packet[HEADER_LEN..]));
            }
            assert!(got == data);
            assert_eq!(guest.counter("rx_dropped_offload"), 0);
        },
    );
}

#[test]
fn f07_a_tap_that_is_deleted_takes_the_link_down_and_no_more() {
    isolated("taps::f07_a_tap_that_is_deleted_takes_the_link_down_and_no_more", || {
        let (mut guest, _peer) = boot("", STATUS);
        guest.post(2000);
        ip("link del card");
        until("the link is down", || guest.link_status() == 0);
        guest.send(&from_card(60, 1));
        assert_eq!(guest.counter("tx_dropped_link_down"), 1);
        guest.restart(STATUS | TSO);
        guest.send(&from_card(60, 1));
        assert_eq!(guest.counter("host_setup_failures"), 1);
        assert!(!guest.needs_reset());
    });
}

#[test]
fn f07_a_tap_that_is_down_drops_and_goes_on_when_it_is_up() {
    isolated("taps::f07_a_tap_that_is_down_drops_and_goes_on_when_it_is_up", || {
        let (guest, peer) = boot("", 0);
        assert_alive(&guest, &peer);
        ip("link set card down");
        guest.send(&from_card(60, 1));
        assert_eq!(guest.counter("tx_dropped_host"), 1);
        ip("link set card up");
        assert_alive(&guest, &peer);
    });
}

#[test]
fn spec_5_1_6_5_6_2_the_host_sends_by_the_queues_that_are_in_use() {
    isolated("taps::spec_5_1_6_5_6_2_the_host_sends_by_the_queues_that_are_in_use", || {
        let (mut guest, peer) = boot("queues = 3", CTRL_VQ | MQ | MRG_RXBUF);
        let pairs = |guest: &Guest, pairs: u8| guest.command(&[4, 0, pairs, 0]);
        let post_everywhere = |guest: &Guest| {
            for pair in 0..3 {
                for _ in 0..40 {
                    let address = guest.allocate(2000);
                    guest.offer(2 * pair, &[Descriptor::writable(address, 2000)]);
                }
            }
        };
        // Packets of many flows, which the tap spreads over its queues.
        let flood = |guest: &Guest| {
            let before = guest.counter("rx_packets");
            for flow in 0..16u8 {
                let mut packet = tcp(MAC, PEER, &[flow; 20]);
                packet[35] = flow;
                peer.put(&PLAIN, &packet);
            }
            until("all are received", || guest.counter("rx_packets") == before + 16);
        };
        for _ in 0..2 {
            post_everywhere(&guest);
            flood(&guest);
            // One queue is in use, and all come there.
            guest.wait_rx(16);
            assert_eq!(pairs(&guest, 3), 0);
            flood(&guest);
            assert!(guest.queues[RX].used_idx() < 32, "they come by several queues");
            for pair in 0..3 {
                let queue = 2 * pair + TX;
                let count = guest.send_in(queue, &[&PLAIN[..], &from_card(60, 9)].concat(), &[]);
                guest.queues[queue].wait_used(count);
                assert_eq!(peer.take(), from_card(60, 9));
            }
            assert_eq!(pairs(&guest, 2), 0);
            assert_eq!(pairs(&guest, 1), 0);
            assert_eq!(pairs(&guest, 2), 0);
            guest.restart(CTRL_VQ | MQ | MRG_RXBUF);
            guest.send(&from_card(60, 0x11));
            assert_eq!(peer.take(), from_card(60, 0x11));
        }
    });
}

#[test]
fn f02_no_header_upsets_the_kernel_or_the_card() {
    isolated("taps::f02_no_header_upsets_the_kernel_or_the_card", || {
        let (guest, peer) = boot("", TSO);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let packet = tcp([2, 0, 0, 0, 0, 1], MAC, &[7; 3000]);
        let (space, mut sent) = (guest.allocate(70_000), guest.queues[TX].used_idx());
        testkit::cases::count(3000);
        for _ in 0..3000 {
            let mut header = CUT;
            for _ in 0..1 + random() % 4 {
                header[(random() % 10) as usize] = random() as u8;
            }
            let len = (random() % 3100).min(packet.len() as u64) as usize;
            guest.memory.write(space, &[&header[..], &packet[..len]].concat());
            sent = sent.wrapping_add(1);
            guest.offer(TX, &[Descriptor::readable(space, (HEADER_LEN + len) as u32)]);
            guest.queues[TX].wait_used(sent);
        }
        let counted = ["tx_packets", "tx_dropped_malformed", "tx_dropped_host"].map(|name| guest.counter(name));
        assert_eq!(counted.iter().sum::<u64>(), 3001);
        assert!(counted[0] > 100 && counted[1] > 100, "{counted:?}");
        guest.send(&from_card(60, 0x55));
        until("the peer has seen the last packet", || peer.take() == from_card(60, 0x55));
    });
}

#[test]
fn f09_a_flood_without_buffers_leaves_the_lane_asleep_and_is_bounded_by_the_tap() {
    isolated("taps::f09_a_flood_without_buffers_leaves_the_lane_asleep_and_is_bounded_by_the_tap", || {
        let (guest, peer) = boot("", MRG_RXBUF);
        guest.post(2000);
        peer.put(&PLAIN, &for_card(60, 0));
        guest.wait_rx(1);
        peer.put(&PLAIN, &for_card(60, 1));
        guest.wait_counter("rx_no_buffers", 1);
        let syscalls = guest.counter("syscalls");
        for _ in 0..3000 {
            // A tap that is full drops them.
            match rustix::io::write(&peer.0, &[&PLAIN[..], &for_card(60, 2)].concat()).map_err(io::Error::from) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.raw_os_error(), Some(105)),
            }
        }
        assert!(guest.counter("syscalls") <= syscalls + 1);
        guest.post_many(8, 2000);
        guest.wait_rx(9);
        assert!(!guest.needs_reset());
    });
}
