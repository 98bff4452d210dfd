//! Numbers of Xen that must not be mixed up.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The first id that names no domain (`DOMID_FIRST_RESERVED`, xen/public/xen.h).
const FIRST_RESERVED: u16 = 0x7ff0;

/// A domain: 0 is the control domain, up to 0x7fef are guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(u16);

/// The id stands for something other than a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no domain id: they go from 0 to 32751")]
pub struct ReservedDomId(pub u32);

impl DomId {
    /// Checks that `id` names a domain.
    ///
    /// # Errors
    /// It is one of the reserved ids, or beyond them.
    pub fn new(id: u32) -> Result<Self, ReservedDomId> {
        match u16::try_from(id) {
            Ok(id) if id < FIRST_RESERVED => Ok(Self(id)),
            _ => Err(ReservedDomId(id)),
        }
    }

    /// As Xen wants it.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A guest frame number: a guest-physical address in units of 4 KiB, whatever the host's page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gfn(pub u64);

/// An event channel, as one of its two ends numbers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Port(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ids_are_no_domains() {
        assert_eq!(DomId::new(0x7fef).unwrap().get(), 0x7fef);
        assert_eq!(DomId::new(0x7ff0), Err(ReservedDomId(0x7ff0)));
        assert_eq!(DomId::new(0x1_0001), Err(ReservedDomId(0x1_0001)), "never cut to 16 bits");
    }
}
