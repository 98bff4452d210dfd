//! Devices behind a socket, with a front-end at its other end that is partly not ours: the messages are those of the
//! `vhost` crate's front-end, and the drivers of real devices those of `virtio_drivers`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test reports by panicking"
)]

mod config;
mod connections;
mod devices;
mod faults;
mod features;
mod hostile;
mod memory;
mod rings;
mod service;
mod transport;
mod vmm;
