//! A network card behind its registers, worked by a driver that is written by hand: over a fake of the host, which fails
//! as it is told, and over real taps. One file a subject, and a name for each row of the table of hostile inputs (f) and
//! for each statement of the specification.
//!
//! The tests with taps need root and iproute2: each runs in a process and a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod batches;
mod commands;
mod conformance;
mod control;
mod driver;
mod fake;
mod features;
mod guest;
mod headers;
#[path = "../host/harness.rs"]
#[allow(dead_code, reason = "the tests of the host's end use all of it")]
mod isolated;
mod link;
mod model;
mod passt;
mod queues;
mod receive;
mod recovery;
mod taps;
mod transmit;
