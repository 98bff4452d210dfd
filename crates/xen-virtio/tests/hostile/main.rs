//! Hostile drivers of every kind of device: rows B, C and D of the table of hostile inputs; and a hostile xenstore, row H04.
//!
//! Each kind stands behind a real register file, as in a worker, and reaches a fake guest's memory. What a driver does wrong
//! is written down once, in tables, and done to all of them; after each input the device is reset, and an honest driver
//! must find that it works.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test reports by panicking"
)]

mod chains;
mod conformance;
mod domains;
mod guest;
mod hosts;
mod lives;
mod memory;
mod queues;
mod registers;
#[path = "../rig/mod.rs"]
mod rig;
mod rings;
mod states;
mod xenstore;
