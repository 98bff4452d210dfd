//! Disks over NBD: on servers that others wrote, and on one that the tests play, which is as wrong as a server can be.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

#[allow(dead_code, reason = "what the tests of other images need besides")]
#[path = "../disk/harness.rs"]
mod harness;
#[path = "../disk/steps.rs"]
mod steps;

mod disk;
mod played;
mod servers;

mod following;
mod hostile;
mod model;
mod opening;
mod real;
mod reconnect;
