//! A driver that does all that it must not do.
//!
//! Each of its moves ([`moves`]) is a row of the table of hostile inputs, done to a device that was in use. After each the
//! device is reset, set up as it should be, and has to do an honest request ([`driver`]).
//!
//! What a move needs of the machine that it runs on is a [`Machine`]: in a guest on real Xen that is `/dev/mem` and a page
//! whose address the kernel tells ([`devmem`]); in the tests of this crate it is a register file in the same process.
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "all numbers are of our own making")]

#[cfg(target_arch = "aarch64")]
pub mod awkward;
pub mod devmem;
pub mod driver;
pub mod machine;
pub mod moves;
pub mod registers;

pub use machine::Machine;
