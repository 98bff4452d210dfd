//! How a device reaches guest pages: page sources, the map cache, pins.
//!
//! A guest address is an allegation. It becomes memory in a [`View`], each lane's own, which asks the guest's
//! [`MapCache`], which asks a [`PageSource`]: foreign mappings under Xen, regions of a front-end under vhost-user
//! ([`PlainMemory`]). Rings and headers are read through `vm_memory::GuestMemory`, which `View` implements; what a
//! request carries is pinned in [`Buffers`] that the request owns.
//!
//! - No page without memory behind it becomes a pointer.
//! - Nothing that anyone holds is unmapped, and nothing stale is found again.
//! - What is mapped is bounded; when all of it is in use the answer is [`AccessError::Busy`], not more.
//! - There is never a Rust reference into guest memory: volatile copies and atomic accesses only.
//!
//! This crate knows no hypervisor, no virtqueue and no device.

mod address;
mod anonymous;
mod budget;
mod buffers;
mod cache;
mod chunk;
mod copied;
mod error;
#[cfg(test)]
mod exhaustive;
mod granted;
mod grants;
mod layout;
mod look_aside;
mod no_backend;
mod plain;
mod scratch;
mod source;
mod stats;
mod sync;
mod table;
mod vectored;
mod view;

pub use address::{CHUNK_SIZE, PAGE_SIZE, Route};
pub use anonymous::{AnonymousMapping, SharedMemory};
pub use budget::Budget;
pub use buffers::{Buffers, IoVecs};
pub use cache::MapCache;
pub use error::AccessError;
pub use no_backend::{NoBackend, NoRegion};
pub use plain::{LayoutError, PlainMemory};
pub use source::{Access, GrantCopy, GrantError, GrantSource, MapError, Mapping, PageSource, Sources};
pub use stats::Stats;
pub use vectored::{Part, read_vectored, write_vectored};
pub use view::View;
