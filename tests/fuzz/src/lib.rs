//! Inputs of any kind for everything that hears a guest, or another party that is not trusted.
//!
//! A *target* is a module with a function `run`, which makes of bytes what such a party does, has the real code deal with
//! it, and judges the outcome: by a model of its own, by what memory was before, or by what is left at the end. It panics
//! if something is wrong. libFuzzer searches for bytes that make it so (`make fuzz`); what it found of interest is in
//! `corpus`, and is played again by `cargo test`.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "numbers of guests that are smaller than a MiB, or cut on purpose")]

mod chain;
mod guest;
mod lanes;

pub mod bridge;
pub mod configuration;
pub mod console;
pub mod device;
pub mod disk;
pub mod mapcache;
pub mod net;
pub mod protocol;
pub mod record;
pub mod registers;
pub mod rings;
pub mod rng;
pub mod slots;
pub mod vhost_user;
pub mod vsock;
pub mod xenstore;

/// What is done with an input.
pub type Target = fn(&[u8]);

/// The targets by name. Each has a program of that name in `fuzz_targets` and a folder in `corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("bridge", bridge::run),
    ("configuration", configuration::run),
    ("console", console::run),
    ("device", device::run),
    ("disk", disk::run),
    ("mapcache", mapcache::run),
    ("net", net::run),
    ("protocol", protocol::run),
    ("record", record::run),
    ("registers", registers::run),
    ("rings", rings::run),
    ("rng", rng::run),
    ("slots", slots::run),
    ("vhost_user", vhost_user::run),
    ("vsock", vsock::run),
    ("xenstore", xenstore::run),
];
