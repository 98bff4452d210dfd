//! Feature bits (virtio 1.2 §5.1.3): what is offered, and which sets make sense.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use crate::Config;

pub(crate) const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
pub(crate) const MTU: u64 = 1 << VIRTIO_NET_F_MTU;
pub(crate) const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
pub(crate) const HOST_TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;
pub(crate) const HOST_TSO6: u64 = 1 << VIRTIO_NET_F_HOST_TSO6;
pub(crate) const HOST_ECN: u64 = 1 << VIRTIO_NET_F_HOST_ECN;
pub(crate) const HOST_USO: u64 = 1 << VIRTIO_NET_F_HOST_USO;
pub(crate) const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
pub(crate) const CTRL_RX: u64 = 1 << VIRTIO_NET_F_CTRL_RX;
pub(crate) const CTRL_RX_EXTRA: u64 = 1 << VIRTIO_NET_F_CTRL_RX_EXTRA;
pub(crate) const CTRL_VLAN: u64 = 1 << VIRTIO_NET_F_CTRL_VLAN;
pub(crate) const CTRL_MAC_ADDR: u64 = 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;
pub(crate) const CTRL_GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
pub(crate) const GUEST_ANNOUNCE: u64 = 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;
pub(crate) const MQ: u64 = 1 << VIRTIO_NET_F_MQ;

/// What the receiver of packets can do itself. The bits of these features name the same in the control queue's
/// GUEST_OFFLOADS_SET (§5.1.6.5.8).
pub mod guest {
    use super::{
        VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    };

    /// Checksums.
    pub const CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
    /// Large TCP packets over IPv4.
    pub const TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
    /// Large TCP packets over IPv6.
    pub const TSO6: u64 = 1 << VIRTIO_NET_F_GUEST_TSO6;
    /// Large TCP packets with ECN.
    pub const ECN: u64 = 1 << VIRTIO_NET_F_GUEST_ECN;
    /// Large UDP packets over IPv4.
    pub const USO4: u64 = 1 << VIRTIO_NET_F_GUEST_USO4;
    /// Large UDP packets over IPv6.
    pub const USO6: u64 = 1 << VIRTIO_NET_F_GUEST_USO6;
    /// Those that make packets larger than the MTU.
    pub const LARGE: u64 = TSO4 | TSO6 | USO4 | USO6;
    /// All of them.
    pub const ALL: u64 = CSUM | LARGE | ECN;
}

/// Features, and those of which each needs at least one (§5.1.3.1).
///
/// What the driver is to use the control queue for, such as MQ, is not refused without CTRL_VQ: a transport may keep the
/// control queue to itself, as front-ends of vhost-user do, and then the card sees of it only what follows from it.
const NEEDS: &[(u64, u64)] = &[
    (guest::TSO4 | guest::TSO6 | guest::USO4 | guest::USO6, guest::CSUM),
    (guest::ECN, guest::TSO4 | guest::TSO6),
    (HOST_TSO4 | HOST_TSO6 | HOST_USO, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
];

/// What a card offers over a host that can be told these offloads.
pub(crate) fn offered(config: &Config, offloads: u64) -> u64 {
    let always = 1 << VIRTIO_NET_F_MAC
        | 1 << VIRTIO_NET_F_STATUS
        | MRG_RXBUF
        | CTRL_VQ
        | CTRL_RX
        | CTRL_RX_EXTRA
        | CTRL_VLAN
        | CTRL_MAC_ADDR
        | GUEST_ANNOUNCE;
    let offloads = if config.offload { offloads } else { 0 };
    let wanted = [
        (MTU, config.mtu.is_some()),
        (MQ, config.queues > 1),
        (offloads | CTRL_GUEST_OFFLOADS, offloads != 0),
        // What the host can leave to the driver it can do for it.
        (CSUM, offloads & guest::CSUM != 0),
        (HOST_TSO4, offloads & guest::TSO4 != 0),
        (HOST_TSO6, offloads & guest::TSO6 != 0),
        (HOST_ECN, offloads & guest::ECN != 0),
        (HOST_USO, offloads & (guest::USO4 | guest::USO6) != 0),
    ];
    wanted.iter().filter(|(_, offered)| *offered).fold(always, |bits, (feature, _)| bits | feature)
}

/// Whether each feature comes with what it needs.
pub(crate) fn are_consistent(features: u64) -> bool {
    NEEDS.iter().all(|(some, needed)| features & some == 0 || features & needed != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_5_1_3_1_what_is_offered_is_consistent_whatever_the_host_can() {
        let queues = [1, 2].map(|queues| Config { queues, mtu: Some(1500), ..Config::default() });
        for offloads in
            [0, guest::CSUM, guest::CSUM | guest::TSO4, guest::ALL & !guest::USO4 & !guest::USO6, guest::ALL]
        {
            for config in &queues {
                assert!(are_consistent(offered(config, offloads)), "{offloads:#x}");
            }
        }
    }

    #[test]
    fn without_offload_the_driver_is_offered_none() {
        let features = offered(&Config { offload: false, ..Config::default() }, guest::ALL);
        let any = guest::ALL | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO | CTRL_GUEST_OFFLOADS;
        assert_eq!(features & any, 0);
    }

    #[test]
    fn spec_5_1_3_1_a_feature_without_what_it_needs_is_not_accepted() {
        for features in [guest::TSO4, guest::USO6, guest::CSUM | guest::ECN, HOST_TSO6, CSUM | HOST_ECN] {
            assert!(!are_consistent(features), "{features:#x}");
        }
        for features in [0, guest::CSUM | guest::TSO6 | guest::ECN, CSUM | HOST_USO, MQ | CTRL_VQ, MQ, GUEST_ANNOUNCE] {
            assert!(are_consistent(features), "{features:#x}");
        }
    }
}
