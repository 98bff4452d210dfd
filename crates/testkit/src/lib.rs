//! Plays Xen, xenstored, the guest's driver and a device in process; for tests only.
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

pub mod cases;
pub mod device;
pub mod driver;
pub mod grants;
pub mod memory;
mod pages;
pub mod record;
pub mod xen;
pub mod xenstored;
