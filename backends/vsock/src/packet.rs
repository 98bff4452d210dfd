//! The header that each packet begins with (virtio 1.2 §5.10.6), and its numbers.
//!
//! Written here: the packets of rust-vmm's `virtio-vsock` want their payload in one descriptor and one piece of the
//! host's address space, and neither is so for a driver that uses fragments or for memory that is mapped in chunks.

use guest_memory::Buffers;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = size_of::<Header>();

/// The host's context ID (§5.10.4).
pub(crate) const HOST_CID: u64 = 2;

/// VIRTIO_VSOCK_TYPE_STREAM
pub(crate) const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender will not receive any more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender will not send any more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;

/// Both.
pub(crate) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `struct virtio_vsock_hdr`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) src_cid: U64,
    pub(crate) dst_cid: U64,
    pub(crate) src_port: U32,
    pub(crate) dst_port: U32,
    /// Bytes of payload.
    pub(crate) len: U32,
    /// Of the socket; the specification's `type`.
    pub(crate) kind: U16,
    pub(crate) op: U16,
    pub(crate) flags: U32,
    pub(crate) buf_alloc: U32,
    pub(crate) fwd_cnt: U32,
}

/// What a packet is for (§5.10.6): VIRTIO_VSOCK_OP_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

impl Header {
    /// Copies it out of a packet of the driver's, once. `None` if the packet is shorter.
    pub(crate) fn read(packet: &Buffers) -> Option<Self> {
        let mut header = Self::default();
        (packet.read(0, header.as_mut_bytes()) == HEADER_LEN).then_some(header)
    }

    /// What the packet is for, or `None` if nobody knows.
    pub(crate) fn op(&self) -> Option<Op> {
        let all = [Op::Request, Op::Response, Op::Rst, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest];
        all.into_iter().find(|op| *op as u16 == self.op.get())
    }

    /// The connection that a packet of the guest's belongs to.
    pub(crate) fn ports(&self) -> Ports {
        Ports { host: self.dst_port.get(), guest: self.src_port.get() }
    }

    /// A packet to the guest.
    pub(crate) fn to_guest(cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            src_cid: HOST_CID.into(),
            dst_cid: cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            kind: TYPE_STREAM.into(),
            op: (op as u16).into(),
            ..Self::default()
        }
    }

    /// The reset that refuses this packet: from where it was to go, and of its own type, so that the guest can tell
    /// what is meant.
    pub(crate) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: (Op::Rst as u16).into(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        assert_eq!(offset_of!(Header, src_port), 16);
        assert_eq!(offset_of!(Header, len), 24);
        assert_eq!(offset_of!(Header, kind), 28);
        assert_eq!(offset_of!(Header, op), 30);
        assert_eq!(offset_of!(Header, flags), 32);
        assert_eq!(offset_of!(Header, fwd_cnt), 40);
        assert_eq!(HEADER_LEN, 44);
    }

    #[test]
    fn operations_are_those_of_the_specification_and_no_others() {
        let known: Vec<u16> =
            (0..=u16::MAX).filter(|op| Header { op: (*op).into(), ..Header::default() }.op().is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
    }
}
