//! The guest's MAC address, when nobody chose one.

use virtio_backend::Owner;

/// The prefix that the IEEE gave to Xen's project: unicast, universally administered, and what administrators of such
/// guests expect.
const PREFIX: [u8; 3] = [0x00, 0x16, 0x3e];

/// An address that stays the same for as long as the guest keeps its identity.
///
/// The lower 24 bits are the FNV-1a hash (64 bits, folded by exclusive or) of the identity, plus the index. Guests keep
/// leases and interface names by their address, so this must never change: not with the program's version, which
/// rules out the standard library's hashes, and not with the number of devices.
pub(super) fn derived(owner: &Owner) -> [u8; 6] {
    let hash = fnv_1a(owner.identity.as_bytes());
    let folded = hash ^ (hash >> 24) ^ (hash >> 48);
    // Added and not hashed: two devices of a guest never have the same.
    let [low, middle, high, ..] = folded.wrapping_add(owner.index as u64).to_le_bytes();
    let [first, second, third] = PREFIX;
    [first, second, third, high, middle, low]
}

/// <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::PathBuf;

    use super::*;

    fn owner(identity: &str, index: usize) -> Owner {
        Owner { guest: "web".into(), identity: identity.into(), index, vcpus: 1, directory: PathBuf::new() }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    const ADDRESS: [u8; 6] = [0x00, 0x16, 0x3e, 0x6e, 0x9f, 0xe0];

    #[test]
    fn an_address_is_the_same_in_every_version() {
        let identity = "0e8a5d0c-97a5-4b0e-8a6b-1f6f6a3f4a11";
        assert_eq!(derived(&owner(identity, 0)), ADDRESS);
        let [.., last] = ADDRESS;
        assert_eq!(derived(&owner(identity, 1)).last(), Some(&(last + 1)));
    }

    #[test]
    fn no_two_devices_of_a_guest_share_an_address_and_none_is_multicast() {
        let addresses: Vec<_> = (0..500).map(|index| derived(&owner("web", index))).collect();
        assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), 500);
        assert!(addresses.iter().all(|address| address.starts_with(&PREFIX)));
        assert_eq!(PREFIX[0] & 1, 0);
    }
}
