//! A console behind its registers, between a driver that is written by hand and readers on the host. One file a
//! subject, and a name for each row of the table of hostile inputs (g: consoles).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod harness;
mod readers;
mod recovery;

mod driver;
mod emergency;
mod files;
mod input;
mod opening;
mod output;
mod ports;
mod resizing;
mod stdio;
mod tables;
