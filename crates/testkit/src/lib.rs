//! Plays Xen, xenstored and the guest's driver in process; for tests only.
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

pub mod driver;
pub mod memory;
pub mod xen;
pub mod xenstored;
