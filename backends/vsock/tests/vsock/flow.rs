//! Much data and many connections: nothing lost, nothing out of order, nobody forgotten.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use proptest::prelude::*;
use testkit::driver::Registers;

use crate::harness::{Guest, PATIENCE, op, pattern, raise_descriptor_limit};
use crate::stream::Stream;

/// Sends back all that comes, in pieces of this size.
fn echo(mut host: UnixStream, piece: usize) {
    let mut bytes = vec![0; piece];
    while let Ok(len @ 1..) = host.read(&mut bytes) {
        if host.write_all(&bytes[..len]).is_err() {
            return;
        }
    }
}

/// Gives the streams what has come for them.
fn pump(guest: &mut Guest, streams: &mut [Stream]) {
    while let Some(packet) = guest.try_recv() {
        let stream = streams.iter_mut().find(|stream| stream.guest_port == packet.dst_port);
        stream.unwrap_or_else(|| panic!("for nobody: {packet:?}")).hear(&packet);
    }
    guest.assert_alive();
}

/// Sends data through an echo and takes what comes back, in pieces of such sizes.
fn round_trip(data: &[u8], room: u32, sizes: &[usize], take: usize, piece: usize) -> Vec<u8> {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut streams = [Stream::connect(&mut guest, 500, 1, room)];
    let host = listener.1.accept().unwrap().0;
    let echo = thread::spawn(move || echo(host, piece));
    let (mut at, mut back, deadline) = (0, Vec::new(), Instant::now() + PATIENCE);
    let mut sizes = sizes.iter().cycle();
    while back.len() < data.len() {
        let size = *sizes.next().unwrap();
        at += streams[0].send(&guest, &data[at..data.len().min(at + size)]);
        pump(&mut guest, &mut streams);
        back.extend(streams[0].take(&guest, take));
        assert!(Instant::now() < deadline, "{} of {} bytes; {:?}", back.len(), data.len(), guest.device.counters());
    }
    guest.send(&streams[0].packet(op::SHUTDOWN).flags(3));
    echo.join().unwrap();
    back
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn data_comes_through_whole_and_in_order_whatever_the_sizes(
        len in 1..400_000usize,
        room in 1000..200_000u32,
        sizes in prop::collection::vec(1..70_000usize, 1..8),
        take in 500..100_000usize,
        piece in 500..50_000usize,
    ) {
        let data = pattern(len, len as u8);
        prop_assert!(round_trip(&data, room, &sizes, take, piece) == data);
    }
}

#[test]
fn a_slow_guest_and_a_slow_host_lose_nothing() {
    let data = pattern(60_000, 1);
    // A guest with hardly any room that takes little at a time; a host that reads little at a time.
    assert!(round_trip(&data, 700, &[60_000], 100, 4096) == data);
    assert!(round_trip(&data, 1 << 20, &[60_000], 60_000, 64) == data);
}

#[test]
fn a_thousand_connections_are_all_served() {
    raise_descriptor_limit();
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut streams = Vec::new();
    let mut hosts = Vec::new();
    for port in 0..1000 {
        streams.push(Stream::connect(&mut guest, 10_000 + port, 1, 4096));
        hosts.push(listener.1.accept().unwrap().0);
    }
    for (index, (stream, host)) in (0u32..).zip(streams.iter_mut().zip(&mut hosts)) {
        stream.send(&guest, &index.to_le_bytes());
        host.write_all(&pattern(3000, index as u8)).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while streams.iter().any(|stream| stream.received.len() < 3000) {
        pump(&mut guest, &mut streams);
        assert!(Instant::now() < deadline, "{:?}", guest.device.counters());
        thread::yield_now();
    }
    for (index, (stream, mut host)) in (0u32..).zip(streams.iter().zip(hosts)) {
        assert_eq!(stream.received, pattern(3000, index as u8));
        let mut bytes = [0; 4];
        host.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), index);
    }
    // All hosts have gone: all ends are told, and the guest agrees to each.
    let mut ended = 0;
    while ended < 1000 {
        let packet = guest.recv();
        if packet.op == op::SHUTDOWN {
            guest.send(&packet.answer(op::RST));
            ended += 1;
        }
    }
    guest.wait_counter("connections_closed", 1000);
}

#[test]
fn a_busy_connection_does_not_starve_others() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut streams = [Stream::connect(&mut guest, 1, 1, 1 << 30), Stream::connect(&mut guest, 2, 1, 1 << 20)];
    let mut hosts = [listener.1.accept().unwrap().0, listener.1.accept().unwrap().0];
    let [mut busy, _] = [hosts[0].try_clone().unwrap(), hosts[1].try_clone().unwrap()];
    let flood = thread::spawn(move || while busy.write_all(&[1; 65_536]).is_ok() {});
    let deadline = Instant::now() + PATIENCE;
    for turn in 1..=50usize {
        hosts[1].write_all(b"x").unwrap();
        while streams[1].received.len() < turn {
            pump(&mut guest, &mut streams);
            let all = streams[0].received.len();
            streams[0].take(&guest, all);
            assert!(Instant::now() < deadline, "turn {turn}; {:?}", guest.device.counters());
        }
    }
    guest.transport.reset();
    flood.join().unwrap();
    drop(hosts);
}
