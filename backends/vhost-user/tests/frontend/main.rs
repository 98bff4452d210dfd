//! Devices whose backend is another program: one of QEMU's, and one that does as a test says. The guest's driver is
//! written by hand or by others. One file a subject; what begins with g09 or g10 is a row of the table of hostile
//! inputs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod harness;
mod puppet;

mod configuration;
mod data;
mod hostile;
mod opening;
mod ours;
mod recovery;
mod resets;
mod restarts;
mod room;
mod storage_daemon;
mod virtiofsd;
