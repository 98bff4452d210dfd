//! Plays Xen, xenstored and the guest's driver in process; for tests only.

pub mod memory;
pub mod xen;
pub mod xenstored;
