//! Receiving, compared with what the specification says of it, for buffers and packets of all shapes.

use std::sync::Arc;

use testkit::cases;
use testkit::driver::{Descriptor, Way};
use virtio_net::Net;
use virtio_net::engine::{HEADER_LEN, MAX_FRAME};

use crate::fake::FakeHost;
use crate::guest::{CSUM, GUEST_CSUM, GUEST_TSO4, Guest, HOST_TSO4, MRG_RXBUF, RX, config, for_card, until};

/// NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1448, checksum of a TCP header behind an IP header at 14.
const TCP: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

/// Xorshift: the same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A chain of the driver's: its head, and where its pieces are and how long.
struct Chain {
    head: u16,
    pieces: Vec<(u64, usize)>,
}

impl Chain {
    fn len(&self) -> usize {
        self.pieces.iter().map(|(_, len)| len).sum()
    }

    fn bytes(&self, guest: &Guest) -> Vec<u8> {
        self.pieces.iter().flat_map(|(address, len)| guest.bytes(*address, *len)).collect()
    }
}

fn publish(guest: &Guest, random: &mut Random, largest: usize) -> Chain {
    let lens: Vec<usize> = (0..1 + random.below(4)).map(|_| random.below(largest)).collect();
    let pieces: Vec<_> = lens.into_iter().map(|len| (guest.allocate(len), len)).collect();
    let descriptors: Vec<_> = pieces.iter().map(|(address, len)| Descriptor::writable(*address, *len as u32)).collect();
    Chain { head: guest.publish(RX, &descriptors), pieces }
}

/// Receives packets into 50 chains until one of them would have to wait.
fn round(way: Way, random: &mut Random) {
    let mergeable = random.below(3) > 0;
    let features = CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4 | if mergeable { MRG_RXBUF } else { 0 };
    let largest = [3, 300, 3000, 40_000][random.below(4)];
    let (host, engine) = FakeHost::new(1);
    let card = Arc::new(Net::with_engine(&config(), engine).unwrap());
    let guest = Guest::before_start_by(way, card, features, 256);
    let chains: Vec<Chain> = (0..50).map(|_| publish(&guest, random, largest)).collect();
    guest.start();
    let (mut used, mut dropped) = (0, 0);
    for seed in 0..20u8 {
        let longest = [20, 1500, MAX_FRAME][random.below(3)];
        let packet = for_card(14 + random.below(longest - 13), seed);
        let len = HEADER_LEN + packet.len();
        let left = &chains[used..];
        let mut room = 0;
        let count = left.iter().take(if mergeable { 50 } else { 1 }).position(|chain| {
            room += chain.len();
            room >= len
        });
        if left.is_empty() || mergeable && count.is_none() {
            return;
        }
        host.put_with(&TCP, &packet);
        let Some(count) = count.map(|position| position + 1) else {
            dropped += 1;
            guest.wait_counter("rx_dropped_no_fit", dropped);
            continue;
        };
        let taken = &left[..count];
        until("the packet comes", || usize::from(guest.queues[RX].used_idx()) == used + count);
        let mut seen = Vec::new();
        for (index, chain) in taken.iter().enumerate() {
            let element = guest.queues[RX].used((used + index) as u16);
            assert_eq!(element.id, u32::from(chain.head));
            assert!(element.len as usize == chain.len() || index + 1 == count, "all but the last are full");
            seen.extend_from_slice(&chain.bytes(&guest)[..element.len as usize]);
        }
        let mut header = TCP;
        header[10] = count as u8;
        assert_eq!(seen[..HEADER_LEN], header);
        assert!(seen[HEADER_LEN..] == packet, "packet {seed} is another");
        used += count;
    }
    assert!(!guest.needs_reset());
}

#[test]
fn f03_buffers_and_packets_of_all_shapes() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    cases::each((0..60).flat_map(|number| Way::ALL.map(|way| (number, way))), |(_number, way)| round(way, &mut random));
}
