//! The trait a virtio device implements, and all that devices share.
//!
//! A device is a [`Backend`]: a value that says what the driver sees of it, and a way to start a
//! [`Worker`] per *lane*. A lane is a thread that owns some of the device's queues as [`Ring`]s and
//! calls its worker whenever there is something to do; requests come out of a ring checked, bounded
//! and with their memory pinned. What goes wrong is a [`Fault`] of one of three parties.
//!
//! Transports (the virtio-mmio register file, a vhost-user socket) stand above this crate and are
//! reached by [`Signals`] alone. Nothing here knows of a hypervisor, and no device knows its
//! transport.
//!
//! Principles: starting moves queues and memory into the lane, stopping gives positions back; the
//! worker dies at reset, so that no state has to be cleared by hand; a guest's mistake costs its
//! device until the next reset and nothing else.

#[cfg(not(loom))]
mod bell;
#[cfg(loom)]
#[path = "bell_of_models.rs"]
mod bell;
mod chain;
mod config;
mod counters;
mod device;
mod fault;
pub mod features;
#[cfg(all(test, not(loom)))]
mod handover;
mod heads;
mod indices;
mod kind;
mod lane;
mod ledger;
mod mailbox;
#[cfg(all(test, loom))]
mod models;
mod moderation;
mod polling;
mod rate_limit;
pub mod reach;
mod record;
mod request;
mod ring;
mod signals;
mod sync;
mod tables;
mod watcher;

pub use bell::Bell;
pub use config::ConfigSpace;
pub use counters::{Counters, CountersSnapshot, count_failure};
pub use device::{Backend, Identity, Wake, Worker, copy_config};
pub use fault::{Fault, GuestFault};
pub use kind::{Kind, Operation, Owner};
pub use lane::{Lane, LaneSetup, QueueSetup, guarded};
pub use ledger::Ledger;
pub use rate_limit::{Rate, RateLimit};
pub use reach::Reach;
pub use record::{Memo, MemoError, Record, RecordError};
pub use request::Request;
pub use ring::{Ring, RingPosition, RingSetup};
pub use signals::Signals;
pub use watcher::{Interest, Ready, Watcher};
