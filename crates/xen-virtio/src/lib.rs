//! The program: serves virtio devices to Xen guests.
//!
//! `xen-virtio serve` is the *broker* ([`broker`]): it watches what the toolstack asks for ([`toolstack`]), opens what a
//! device needs, and starts a *worker* ([`worker`]) for each guest, a process of its own that serves all devices of that
//! guest and knows nothing else. They talk by [`protocol`] over a [`channel`].
//!
//! This crate is the only one that knows both Xen and devices; `worker/wiring.rs` puts them together. [`vhost_user`] has
//! the same devices without Xen.

pub mod broker;
pub mod channel;
pub mod check;
pub mod choice;
pub mod cli;
pub mod client;
pub mod config;
pub mod confine;
pub mod console;
pub mod door;
pub mod failure;
pub mod list;
pub mod logging;
pub mod model;
pub mod operate;
mod process;
pub mod protocol;
pub mod serve;
pub mod toolstack;
pub mod upgrade;
pub mod versions;
pub mod vhost_user;
pub mod worker;
