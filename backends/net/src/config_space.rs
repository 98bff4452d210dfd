//! `struct virtio_net_config` (virtio 1.2 §5.1.4).

use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};
use zerocopy::{Immutable, IntoBytes, little_endian};

/// The fields up to `mtu`; those behind belong to features that are not offered.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct ConfigSpace {
    pub(crate) mac: [u8; 6],
    status: little_endian::U16,
    max_virtqueue_pairs: little_endian::U16,
    mtu: little_endian::U16,
}

/// What `status` tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    /// The cable is in.
    pub(crate) link_up: bool,
    /// The driver is to tell the network where it is.
    pub(crate) announce: bool,
}

impl ConfigSpace {
    /// Its size in bytes.
    pub(crate) const LEN: usize = size_of::<Self>();

    pub(crate) fn new(mac: [u8; 6], status: Status, pairs: u16, mtu: u16) -> Self {
        let link_up = if status.link_up { VIRTIO_NET_S_LINK_UP } else { 0 };
        let announce = if status.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = u16::try_from(link_up | announce).unwrap_or(0);
        Self { mac, status: status.into(), max_virtqueue_pairs: pairs.into(), mtu: mtu.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let status = Status { link_up: true, announce: true };
        let space = ConfigSpace::new([1, 2, 3, 4, 5, 6], status, 4, 9000);
        assert_eq!(space.as_bytes(), [1, 2, 3, 4, 5, 6, 3, 0, 4, 0, 0x28, 0x23]);
    }
}
