//! A disk on a lane of its own, worked by a driver that is written by hand. One file a subject, and a name for each row
//! of the table of hostile inputs (b: memory, d: queues, e: disks).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod harness;
mod scripted;
mod steps;

mod chains;
mod commands;
mod configuration;
mod conformance;
mod direct;
mod driver;
mod durability;
mod failures;
mod following;
mod formats;
mod grants;
mod holding;
mod images;
mod limits;
mod model;
mod neighbours;
mod rates;
mod requests;
mod resizing;
