//! A name for what a [`View`](crate::View) does not have: regions mapped beforehand. `vm-memory` wants one.

use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestUsize, bitmap::BS,
};

/// What `View::physical_memory`, always `None`, would return.
pub type NoBackend = GuestRegionCollection<NoRegion>;

/// A region that cannot exist.
#[derive(Debug)]
pub enum NoRegion {}

impl GuestMemoryRegionBytes for NoRegion {}

impl GuestMemoryRegion for NoRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        match *self {}
    }

    fn start_addr(&self) -> GuestAddress {
        match *self {}
    }

    fn bitmap(&self) -> BS<'_, ()> {
        match *self {}
    }
}
