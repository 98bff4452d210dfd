//! A card over the socket of passt, whose part a test plays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use virtio_backend::{Kind, reach};
use virtio_net::{Config, Net};

use crate::guest::{CSUM, Guest, MRG_RXBUF, PATIENCE, TX, config, for_card, from_card, until};

fn boot(features: u64) -> (Guest, UnixStream) {
    let (passt, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    passt.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = Config { passt: Some("/run/passt.socket".into()), ..config() };
    let card = Net::make(&config, vec![socket.into()], reach::directly::<Net>(&config)).unwrap();
    (Guest::with_card(card, features), passt)
}

fn in_stream(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn next(passt: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    passt.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    passt.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn packets_go_both_ways() {
    let (guest, mut passt) = boot(MRG_RXBUF);
    assert_eq!(guest.card.identity().features & CSUM, 0, "there is nobody to compute a checksum");
    let buffers: Vec<_> = (0..10).map(|_| guest.post(2000)).collect();
    for seed in 0..10 {
        passt.write_all(&in_stream(&for_card(60 + usize::from(seed), seed))).unwrap();
        guest.send(&from_card(1514, seed));
        assert_eq!(next(&mut passt), from_card(1514, seed));
    }
    guest.wait_rx(10);
    for (seed, buffer) in (0..).zip(&buffers) {
        let frame = for_card(60 + usize::from(seed), seed);
        assert_eq!(guest.bytes(*buffer + 12, frame.len()), frame);
    }
}

#[test]
fn a_reader_that_is_slow_gets_every_packet_in_order() {
    let (guest, mut passt) = boot(0);
    const PACKETS: u16 = 400;
    let reader = std::thread::spawn(move || {
        // Large ones, that the socket takes in parts.
        for number in 0..PACKETS {
            assert!(next(&mut passt) == from_card(9000, number as u8), "packet {number} is another");
        }
        passt
    });
    for number in 0..PACKETS {
        let count = guest.send_in(TX, &[&[0; 12][..], &from_card(9000, number as u8)].concat(), &[]);
        until("the queue has room", || count.wrapping_sub(guest.queues[TX].used_idx()) < 60);
    }
    reader.join().unwrap();
    assert_eq!(guest.counter("tx_packets"), u64::from(PACKETS));
}

#[test]
fn a_packet_that_a_reset_cuts_in_two_is_whole_for_passt() {
    let (mut guest, mut passt) = boot(0);
    let mut sent = 0;
    while guest.counter("tx_waits") == 0 {
        let count = guest.send_in(TX, &[&[0; 12][..], &from_card(9001, 1)].concat(), &[]);
        until("it goes or waits", || guest.queues[TX].used_idx() == count || guest.counter("tx_waits") > 0);
        sent = guest.counter("tx_packets");
    }
    guest.restart(0);
    let count = guest.send_in(TX, &[&[0; 12][..], &from_card(60, 2)].concat(), &[]);
    for _ in 0..sent {
        assert!(next(&mut passt) == from_card(9001, 1));
    }
    assert_eq!(next(&mut passt), from_card(60, 2));
    guest.queues[TX].wait_used(count);
}

#[test]
fn f07_when_passt_ends_the_link_goes_down_and_the_card_stays() {
    let (guest, passt) = boot(0);
    guest.post(2000);
    drop(passt);
    until("the link is down", || guest.link_status() == 0);
    guest.send(&from_card(60, 1));
    guest.wait_counter("tx_dropped_link_down", 1);
    assert!(!guest.needs_reset());
}
