//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6): what a driver may say of a packet, and the host of one for the driver.
//!
//! Kernels have believed such headers too much. What goes to the host is therefore made anew of what was checked.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian::U16};

use crate::engine::{HEADER_LEN, MAX_FRAME, MIN_FRAME};
use crate::features::{self, guest};

/// The header, as it lies before a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    pub(crate) hdr_len: U16,
    pub(crate) gso_size: U16,
    pub(crate) csum_start: U16,
    pub(crate) csum_offset: U16,
    pub(crate) num_buffers: U16,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

const NEEDS_CSUM: u8 = constant(VIRTIO_NET_HDR_F_NEEDS_CSUM);
const DATA_VALID: u8 = constant(VIRTIO_NET_HDR_F_DATA_VALID);
const GSO_NONE: u8 = constant(VIRTIO_NET_HDR_GSO_NONE);
const GSO_TCPV4: u8 = constant(VIRTIO_NET_HDR_GSO_TCPV4);
const GSO_TCPV6: u8 = constant(VIRTIO_NET_HDR_GSO_TCPV6);
const GSO_UDP_L4: u8 = constant(VIRTIO_NET_HDR_GSO_UDP_L4);
const GSO_ECN: u8 = constant(VIRTIO_NET_HDR_GSO_ECN);

#[expect(clippy::cast_possible_truncation, reason = "fields of a byte, of which the bindings make numbers of 32 bits")]
const fn constant(value: u32) -> u8 {
    assert!(value <= 0xff);
    value as u8
}

/// `gso_size` by which Linux means something else (GSO_BY_FRAGS).
const NO_SIZE: u16 = 0xffff;

/// Where TCP and UDP have their checksums, and the bytes of their headers at least.
const TCP: (usize, usize) = (16, 20);
const UDP: (usize, usize) = (6, 8);

impl Header {
    /// What the host may be told of a frame of `len` bytes for which the driver wrote this header.
    ///
    /// # Errors
    /// What is wrong with it, or with the frame.
    pub(crate) fn for_host(self, len: usize, negotiated: u64) -> Result<Self, &'static str> {
        if len < MIN_FRAME {
            return Err("is shorter than an Ethernet header");
        }
        if len > MAX_FRAME {
            return Err("is longer than a packet can be");
        }
        let mut clean = Self::default();
        if self.flags & NEEDS_CSUM != 0 {
            self.check_checksum(len, negotiated)?;
            clean = Self { flags: NEEDS_CSUM, csum_start: self.csum_start, csum_offset: self.csum_offset, ..clean };
        }
        if self.gso_type != GSO_NONE {
            self.check_segmentation(len, negotiated)?;
            // A hint only, of which a lie must not be one that points behind the frame.
            let hdr_len = self.hdr_len.get().min(u16::try_from(len).unwrap_or(u16::MAX)).into();
            clean = Self { gso_type: self.gso_type, gso_size: self.gso_size, hdr_len, ..clean };
        }
        Ok(clean)
    }

    fn check_checksum(self, len: usize, negotiated: u64) -> Result<(), &'static str> {
        if negotiated & features::CSUM == 0 {
            return Err("asks for a checksum, which was not negotiated");
        }
        let start = usize::from(self.csum_start.get());
        if start < MIN_FRAME || start + usize::from(self.csum_offset.get()) + 2 > len {
            return Err("wants its checksum where it has no room for one");
        }
        Ok(())
    }

    fn check_segmentation(self, len: usize, negotiated: u64) -> Result<(), &'static str> {
        let (needed, (checksum_at, header_len)) = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => (features::HOST_TSO4, TCP),
            GSO_TCPV6 => (features::HOST_TSO6, TCP),
            GSO_UDP_L4 => (features::HOST_USO, UDP),
            _ => return Err("is to be cut in an unknown way"),
        };
        let has_ecn = self.gso_type & GSO_ECN != 0;
        if negotiated & needed == 0 || has_ecn && negotiated & features::HOST_ECN == 0 {
            return Err("is to be cut in a way that was not negotiated");
        }
        if has_ecn && needed == features::HOST_USO {
            return Err("has ECN of TCP and is of UDP");
        }
        if self.flags & NEEDS_CSUM == 0 || usize::from(self.csum_offset.get()) != checksum_at {
            return Err("is to be cut without the checksum of its protocol");
        }
        if usize::from(self.csum_start.get()) + header_len > len {
            return Err("is to be cut and has not even its headers");
        }
        if matches!(self.gso_size.get(), 0 | NO_SIZE) {
            return Err("is to be cut into pieces of no size");
        }
        Ok(())
    }

    /// What the driver may be told of a packet for which the host gave this header; `None` if the packet needs what the
    /// driver cannot do. `num_buffers` is left to be set.
    pub(crate) fn for_driver(self, offloads: u64) -> Option<Self> {
        let mut clean = Self::default();
        let needed = match self.gso_type & !GSO_ECN {
            GSO_NONE if self.gso_type == GSO_NONE => 0,
            GSO_TCPV4 => guest::TSO4,
            GSO_TCPV6 => guest::TSO6,
            GSO_UDP_L4 => guest::USO4 | guest::USO6,
            _ => return None,
        };
        let ecn = if self.gso_type & GSO_ECN == 0 { 0 } else { guest::ECN };
        let checksum = if self.flags & NEEDS_CSUM == 0 { 0 } else { guest::CSUM };
        let needed = needed | ecn | checksum;
        if offloads & needed != needed {
            return None;
        }
        // What is to be cut gets its checksums by that, so that they cannot be right already (§5.1.6.4.1).
        if self.gso_type != GSO_NONE && (checksum == 0 || matches!(self.gso_size.get(), 0 | NO_SIZE)) {
            return None;
        }
        if checksum != 0 {
            clean = Self { flags: NEEDS_CSUM, csum_start: self.csum_start, csum_offset: self.csum_offset, ..clean };
        } else if offloads & guest::CSUM != 0 {
            clean.flags = self.flags & DATA_VALID;
        }
        if self.gso_type != GSO_NONE {
            clean = Self { gso_type: self.gso_type, gso_size: self.gso_size, hdr_len: self.hdr_len, ..clean };
        }
        Some(clean)
    }

    /// The packet is larger than what goes over a wire.
    pub(crate) fn is_to_be_cut(self) -> bool {
        self.gso_type != GSO_NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 =
        features::CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_ECN | features::HOST_USO;

    fn tcp4() -> Header {
        Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 54.into(),
            gso_size: 1448.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            num_buffers: 0.into(),
        }
    }

    #[test]
    fn f01_a_frame_of_impossible_length_is_refused() {
        for len in [0, 1, 13, MAX_FRAME + 1, usize::MAX] {
            assert!(Header::default().for_host(len, ALL).is_err(), "{len}");
        }
        for len in [14, 1514, MAX_FRAME] {
            assert_eq!(Header::default().for_host(len, ALL), Ok(Header::default()));
        }
    }

    #[test]
    fn f02_a_header_that_contradicts_its_frame_is_refused() {
        type Change = fn(&mut Header);
        let cases: [(&str, Change); 11] = [
            ("unknown gso_type", |h| h.gso_type = 7),
            ("UFO, never offered", |h| h.gso_type = 3),
            ("ECN alone", |h| h.gso_type = GSO_ECN),
            ("ECN of UDP", |h| (h.gso_type, h.csum_offset) = (GSO_UDP_L4 | GSO_ECN, 6.into())),
            ("gso_size 0", |h| h.gso_size = 0.into()),
            ("gso_size 65535", |h| h.gso_size = 65535.into()),
            ("no checksum", |h| h.flags = 0),
            ("checksum behind the frame", |h| h.csum_start = 2983.into()),
            ("checksum that wraps", |h| (h.csum_start, h.csum_offset) = (0xfff0.into(), 0x10.into())),
            ("checksum in the Ethernet header", |h| h.csum_start = 13.into()),
            ("checksum of another protocol", |h| h.csum_offset = 6.into()),
        ];
        assert!(tcp4().for_host(3000, ALL).is_ok());
        for (what, change) in cases {
            let mut header = tcp4();
            change(&mut header);
            assert!(header.for_host(3000, ALL).is_err(), "{what}");
        }
    }

    #[test]
    fn f02_what_was_not_negotiated_is_refused() {
        let checksum_only = Header { gso_type: GSO_NONE, ..tcp4() };
        assert!(checksum_only.for_host(100, 0).is_err());
        for (gso_type, feature) in
            [(GSO_TCPV4, features::HOST_TSO4), (GSO_TCPV6, features::HOST_TSO6), (GSO_UDP_L4, features::HOST_USO)]
        {
            let csum_offset = if gso_type == GSO_UDP_L4 { 6 } else { 16 }.into();
            let header = Header { gso_type, csum_offset, ..tcp4() };
            assert!(header.for_host(3000, ALL).is_ok());
            assert!(header.for_host(3000, ALL & !feature).is_err());
        }
        let ecn = Header { gso_type: GSO_TCPV4 | GSO_ECN, ..tcp4() };
        assert!(ecn.for_host(3000, ALL).is_ok());
        assert!(ecn.for_host(3000, ALL & !features::HOST_ECN).is_err());
    }

    #[test]
    fn spec_5_1_6_2_2_unknown_flags_are_ignored_and_hdr_len_is_not_relied_on() {
        let header = Header { flags: 0xfe, hdr_len: 65535.into(), csum_start: 9.into(), ..Header::default() };
        assert_eq!(header.for_host(60, ALL), Ok(Header::default()));
        let header = Header { hdr_len: 65535.into(), num_buffers: 9.into(), ..tcp4() };
        assert_eq!(header.for_host(3000, ALL).unwrap(), Header { hdr_len: 3000.into(), ..tcp4() });
    }

    #[test]
    fn spec_5_1_6_4_1_the_driver_is_told_only_what_it_negotiated() {
        let all = guest::ALL;
        let header = Header { num_buffers: 1.into(), ..tcp4() };
        assert_eq!(header.for_driver(all), Some(tcp4()));
        assert_eq!(header.for_driver(all & !guest::TSO4), None);
        assert_eq!(header.for_driver(0), None);
        let valid = Header { flags: DATA_VALID, csum_start: 5.into(), ..Header::default() };
        assert_eq!(valid.for_driver(guest::CSUM), Some(Header { flags: DATA_VALID, ..Header::default() }));
        assert_eq!(valid.for_driver(0), Some(Header::default()));
        let partial = Header { gso_type: GSO_NONE, ..tcp4() };
        assert_eq!(partial.for_driver(0), None);
        assert!(partial.for_driver(guest::CSUM).is_some());
    }

    #[test]
    fn spec_5_1_6_4_1_what_the_driver_is_to_cut_needs_its_checksum_and_says_into_what() {
        let cut_off = [
            Header { flags: 0, ..tcp4() },
            Header { flags: DATA_VALID, ..tcp4() },
            Header { gso_size: 0.into(), ..tcp4() },
            Header { gso_size: NO_SIZE.into(), ..tcp4() },
        ];
        for header in cut_off {
            assert_eq!(header.for_driver(guest::ALL), None, "{header:?}");
        }
        assert_eq!(tcp4().for_driver(guest::ALL), Some(tcp4()));
    }

    #[test]
    fn spec_5_1_6_4_1_no_header_of_the_hosts_says_more_than_was_negotiated() {
        let offloads = [0, guest::CSUM, guest::CSUM | guest::TSO4, guest::CSUM | guest::TSO6 | guest::ECN, guest::ALL];
        let types = (0..8).chain([0x40, 0x7f]).chain(0x80..0x88).chain([0xff]);
        let headers = types.flat_map(|gso_type| {
            (0..8).flat_map(move |flags| {
                [0, 1448].map(|size| Header { flags, gso_type, gso_size: size.into(), ..tcp4() })
            })
        });
        let inputs = headers.flat_map(|header| offloads.map(|offloads| (header, offloads)));
        testkit::cases::each(inputs, |(header, offloads)| {
            let Some(told) = header.for_driver(offloads) else { return };
            let needed = match told.gso_type {
                GSO_NONE => 0,
                GSO_TCPV4 => guest::TSO4,
                GSO_TCPV6 => guest::TSO6,
                0x81 => guest::TSO4 | guest::ECN,
                0x84 => guest::TSO6 | guest::ECN,
                GSO_UDP_L4 => guest::USO4 | guest::USO6,
                0x85 => guest::USO4 | guest::USO6 | guest::ECN,
                other => panic!("a driver is told of {other}"),
            };
            assert_eq!(offloads & needed, needed);
            assert!(told.flags == 0 || offloads & guest::CSUM != 0);
            assert_eq!(told.flags & !(NEEDS_CSUM | DATA_VALID), 0, "RSC_INFO and what is reserved");
            assert!(told.gso_type == GSO_NONE || told.flags == NEEDS_CSUM && told.gso_size != 0);
            let reads_zero = told.flags & NEEDS_CSUM == 0;
            assert!(!reads_zero || (told.csum_start.get(), told.csum_offset.get()) == (0, 0));
            assert_eq!(told.num_buffers, 0, "it is not the host's to say");
        });
    }
}
