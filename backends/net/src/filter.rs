//! Which packets the driver wants (virtio 1.2 §5.1.6.5.1 to §5.1.6.5.3).

use serde::{Deserialize, Serialize};

/// Addresses that each of the two tables holds. A driver that wants more gets all of the kind.
pub(crate) const TABLE_LEN: usize = 64;

/// VLANs there can be: 12 bits of them.
pub(crate) const VLANS: u16 = 4096;

/// The bytes of a packet that are looked at: an Ethernet header with a VLAN's tag.
pub(crate) const LOOKED_AT: usize = 18;

const BROADCAST: [u8; 6] = [0xff; 6];
const TAGGED: [u8; 2] = [0x81, 0x00];

/// What passes to the driver. As it is after a reset, all does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// The card's address.
    pub(crate) mac: [u8; 6],
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) all_unicast: bool,
    pub(crate) no_multicast: bool,
    pub(crate) no_unicast: bool,
    pub(crate) no_broadcast: bool,
    pub(crate) unicast: Table,
    pub(crate) multicast: Table,
    /// `None`: packets of any VLAN, for the driver does not care.
    pub(crate) vlans: Option<Vlans>,
}

/// Addresses, or all there are.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) addresses: Vec<[u8; 6]>,
    /// They were too many.
    pub(crate) overflown: bool,
}

impl Table {
    fn has(&self, address: [u8; 6]) -> bool {
        self.overflown || self.addresses.contains(&address)
    }
}

/// A set of VLANs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub(crate) struct Vlans(Box<[u64; VLANS as usize / 64]>);

impl TryFrom<Vec<u64>> for Vlans {
    type Error = &'static str;

    fn try_from(words: Vec<u64>) -> Result<Self, Self::Error> {
        words.try_into().map(|words| Self(Box::new(words))).map_err(|_other_number| "a set of VLANs has 4096 bits")
    }
}

impl From<Vlans> for Vec<u64> {
    fn from(vlans: Vlans) -> Self {
        vlans.0.to_vec()
    }
}

impl Vlans {
    pub(crate) fn none() -> Self {
        Self(Box::new([0; VLANS as usize / 64]))
    }

    /// Puts one in or takes it out. False if there is no such VLAN.
    pub(crate) fn set(&mut self, vlan: u16, wanted: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(vlan / 64)) else { return false };
        let bit = 1 << (vlan % 64);
        *word = if wanted { *word | bit } else { *word & !bit };
        true
    }

    fn has(&self, vlan: u16) -> bool {
        self.0.get(usize::from(vlan / 64)).is_some_and(|word| word & 1 << (vlan % 64) != 0)
    }
}

impl Filter {
    /// The filter after a reset. A driver that has no say in it (CTRL_RX) never changes it; one that has says first of all
    /// what it wants, and sees too much rather than nothing until it does.
    pub(crate) fn after_reset(mac: [u8; 6], filters_vlans: bool) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: filters_vlans.then(Vlans::none),
        }
    }

    /// Whether the packet passes that starts like this.
    pub(crate) fn passes(&self, frame: &[u8]) -> bool {
        let Some((destination, rest)) = frame.split_first_chunk::<6>() else { return false };
        if self.promiscuous {
            return true;
        }
        self.passes_vlan(rest) && self.passes_address(*destination)
    }

    /// `rest` starts with the source's address.
    fn passes_vlan(&self, rest: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else { return true };
        match rest.get(6..) {
            Some([a, b, high, low, ..]) if [*a, *b] == TAGGED => vlans.has(u16::from_be_bytes([*high, *low]) % VLANS),
            _ => true,
        }
    }

    fn passes_address(&self, destination: [u8; 6]) -> bool {
        let [first, ..] = destination;
        if destination == BROADCAST {
            !self.no_broadcast
        } else if first & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.has(destination))
        } else {
            !self.no_unicast && (self.all_unicast || destination == self.mac || self.unicast.has(destination))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
    const OTHER: [u8; 6] = [0, 0x16, 0x3e, 9, 9, 9];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

    fn to(destination: [u8; 6]) -> Vec<u8> {
        [&destination[..], &OTHER, &[8, 0], &[0; 46]].concat()
    }

    fn tagged(vlan: u16) -> Vec<u8> {
        [&MAC[..], &OTHER, &TAGGED, &(0xe000 | vlan).to_be_bytes(), &[8, 0], &[0; 46]].concat()
    }

    fn choosy() -> Filter {
        Filter { promiscuous: false, ..Filter::after_reset(MAC, true) }
    }

    #[test]
    fn a_promiscuous_card_gets_all() {
        let filter = Filter { no_unicast: true, ..Filter::after_reset(MAC, true) };
        assert!([to(MAC), to(OTHER), to(GROUP), to(BROADCAST), tagged(5)].iter().all(|frame| filter.passes(frame)));
    }

    #[test]
    fn spec_5_1_6_5_2_1_others_packets_are_dropped() {
        let filter = choosy();
        assert!(filter.passes(&to(MAC)) && filter.passes(&to(BROADCAST)));
        assert!(!filter.passes(&to(OTHER)) && !filter.passes(&to(GROUP)));
    }

    #[test]
    fn tables_let_pass_what_stands_in_them_and_all_once_they_overflow() {
        let mut filter = choosy();
        filter.unicast.addresses.push(OTHER);
        assert!(filter.passes(&to(OTHER)) && !filter.passes(&to(GROUP)));
        filter.multicast.overflown = true;
        assert!(filter.passes(&to(GROUP)));
    }

    #[test]
    fn spec_5_1_6_5_1_1_each_mode_does_what_it_is_called() {
        assert!(Filter { all_multicast: true, ..choosy() }.passes(&to(GROUP)));
        assert!(Filter { all_unicast: true, ..choosy() }.passes(&to(OTHER)));
        assert!(!Filter { all_multicast: true, no_multicast: true, ..choosy() }.passes(&to(GROUP)));
        assert!(!Filter { no_unicast: true, ..choosy() }.passes(&to(MAC)));
        assert!(!Filter { no_broadcast: true, ..choosy() }.passes(&to(BROADCAST)));
        assert!(Filter { no_multicast: true, ..choosy() }.passes(&to(BROADCAST)));
    }

    #[test]
    fn f08_a_vlan_passes_once_it_is_wanted() {
        let mut filter = choosy();
        assert!(!filter.passes(&tagged(5)));
        let vlans = filter.vlans.as_mut().unwrap();
        assert!(vlans.set(5, true) && vlans.set(4095, true) && !vlans.set(4096, true));
        assert!(filter.passes(&tagged(5)) && filter.passes(&tagged(4095)) && !filter.passes(&tagged(6)));
        assert!(Filter { vlans: None, ..choosy() }.passes(&tagged(6)));
    }

    #[test]
    fn f01_a_packet_without_an_address_passes_never() {
        assert!(!Filter::after_reset(MAC, false).passes(&[0; 5]));
        assert!(choosy().passes(&to(MAC)[..14]));
    }
}
