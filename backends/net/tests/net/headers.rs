//! Rows F01 and F02 as tables: packets of any length in any pieces, and headers that say anything of them. The host sees
//! what the specification allows, and nothing of the rest.

use testkit::cases;
use virtio_net::engine::{HEADER_LEN, MAX_FRAME};

use crate::fake::FakeHost;
use crate::guest::{CSUM, Guest, HOST_TSO4, TX, from_card};

const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const HOST_USO: u64 = 1 << 56;
const ALL: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;

const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

/// What a driver may write before a frame of `len` bytes.
#[derive(Clone, Copy, Debug)]
struct Said {
    len: usize,
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Said {
    fn bytes(self) -> [u8; HEADER_LEN] {
        self.laid_out(self.flags, 0xffff, 0x0909)
    }

    fn laid_out(self, flags: u8, hdr_len: u16, num_buffers: u16) -> [u8; HEADER_LEN] {
        let fields = [hdr_len, self.gso_size, self.csum_start, self.csum_offset, num_buffers].map(u16::to_le_bytes);
        let mut bytes = [flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..].copy_from_slice(fields.as_flattened());
        bytes
    }

    /// What the host is to see of it, if the packet goes to it at all (virtio 1.2 §5.1.6.2).
    fn for_host(self, features: u64) -> Option<[u8; HEADER_LEN]> {
        let (start, offset) = (usize::from(self.csum_start), usize::from(self.csum_offset));
        let sums = self.flags & NEEDS_CSUM != 0;
        let sum_fits = start >= 14 && start + offset + 2 <= self.len;
        if sums && (features & CSUM == 0 || !sum_fits) {
            return None;
        }
        if self.gso_type == 0 {
            let nothing = Self { gso_size: 0, csum_start: 0, csum_offset: 0, ..self };
            return Some(if sums { Self { gso_size: 0, ..self }.laid_out(1, 0, 0) } else { nothing.laid_out(0, 0, 0) });
        }
        let (needed, at, header) = match self.gso_type {
            TCPV4 => (HOST_TSO4, 16, 20),
            TCPV6 => (HOST_TSO6, 16, 20),
            UDP_L4 => (HOST_USO, 6, 8),
            0x81 => (HOST_TSO4 | HOST_ECN, 16, 20),
            0x84 => (HOST_TSO6 | HOST_ECN, 16, 20),
            _ => return None,
        };
        let is_right = features & needed == needed && sums && offset == at && start + header <= self.len;
        let hdr_len = self.len.min(0xffff) as u16;
        (is_right && ![0, 0xffff].contains(&self.gso_size)).then(|| self.laid_out(1, hdr_len, 0))
    }
}

fn all_headers() -> Vec<Said> {
    let mut all = Vec::new();
    // Less than the headers of TCP take, and a large frame.
    for len in [50, 3000] {
        let starts = [0, 13, 34, len as u16 - 1, 0x8000, 0xffff];
        let sums = starts.into_iter().flat_map(|start| [6, 16, 0xffff].map(|offset| (start, offset)));
        for (csum_start, csum_offset) in sums {
            for gso_type in [0, TCPV4, 3, TCPV6, UDP_L4, 6, ECN, ECN | TCPV4, ECN | TCPV6, ECN | UDP_L4, 0xff] {
                let said = |flags, gso_size| Said { len, flags, gso_type, gso_size, csum_start, csum_offset };
                all.extend([said(0, 1448), said(NEEDS_CSUM, 1448), said(0xff, 1), said(NEEDS_CSUM, 0)]);
            }
        }
    }
    let tcp = Said { len: 3000, flags: NEEDS_CSUM, gso_type: TCPV4, gso_size: 1448, csum_start: 34, csum_offset: 16 };
    all.extend([0, 1, 0x7fff, 0xfffe, 0xffff].map(|gso_size| Said { gso_size, ..tcp }));
    all.extend((0..=u8::MAX).flat_map(|byte| [Said { gso_type: byte, ..tcp }, Said { flags: byte, ..tcp }]));
    // Where the last byte of the checksum is the frame's, and where the first is its first.
    all.extend([14, 1500, 2964, 2980, 2981, 2982, 2983].map(|csum_start| Said { csum_start, gso_type: 0, ..tcp }));
    all
}

#[test]
fn f02_every_header_is_judged_by_its_frame_and_by_what_was_negotiated() {
    for features in [0, CSUM | HOST_TSO6 | HOST_ECN, ALL] {
        eprintln!("features {features:#x}");
        let (mut guest, mut host) = Guest::new(features);
        // A guest has so much memory, which is never given back.
        for headers in all_headers().chunks(1000) {
            (guest, host) = if guest.counter("tx_packets") > 0 { Guest::new(features) } else { (guest, host) };
            cases::each(headers, |said| judge(&guest, &host, features, *said));
            guest.assert_alive(&host);
        }
    }
}

fn judge(guest: &Guest, host: &FakeHost, features: u64, said: Said) {
    let frame = from_card(said.len, 2);
    let dropped = guest.counter("tx_dropped_malformed");
    guest.send_with(&said.bytes(), &frame);
    match said.for_host(features) {
        Some(header) => assert_eq!(host.take(), (header.to_vec(), frame)),
        None => assert_eq!(guest.counter("tx_dropped_malformed"), dropped + 1),
    }
}

/// Where the first buffers of a packet end.
fn cuts(len: usize) -> Vec<Vec<usize>> {
    let all = [
        vec![],
        vec![1],
        vec![HEADER_LEN],
        vec![HEADER_LEN - 1, 1],
        vec![0, HEADER_LEN, 0],
        vec![1; HEADER_LEN],
        vec![1; 40],
        vec![HEADER_LEN + 13, 1],
    ];
    all.into_iter().filter(|cuts| cuts.iter().sum::<usize>() <= len).collect()
}

#[test]
fn f01_a_frame_of_any_length_in_any_pieces_is_sent_whole_or_dropped() {
    let few = 0..HEADER_LEN + 20;
    let lens = few.chain([76, 1526, 9012, HEADER_LEN + MAX_FRAME, HEADER_LEN + MAX_FRAME + 1, 100_000]);
    let inputs: Vec<_> = lens.flat_map(|len| cuts(len).into_iter().map(move |cuts| (len, cuts))).collect();
    for features in [0, CSUM | HOST_TSO4] {
        let (guest, host) = Guest::new(features);
        cases::each(&inputs, |(len, cuts)| {
            let packet: Vec<u8> = [&[0; HEADER_LEN][..], &from_card(len.max(&26) - HEADER_LEN, 3)].concat();
            let dropped = guest.counter("tx_dropped_malformed");
            let count = guest.send_in(TX, &packet[..*len], cuts);
            assert_eq!(guest.queues[TX].wait_used(count).len, 0);
            if (14..=MAX_FRAME).contains(&len.saturating_sub(HEADER_LEN)) {
                assert_eq!(host.take().1, packet[HEADER_LEN..]);
            } else {
                assert_eq!(guest.counter("tx_dropped_malformed"), dropped + 1);
            }
        });
        guest.assert_alive(&host);
    }
}
