//! virtio-net (virtio 1.2 §5.1) over taps and passt.
//!
//! A [`Net`] is made from a [`Config`], what the operator writes, and the descriptors that opening it gave: one for each
//! pair of queues. Each pair has a lane of its own, and so has the control queue.
//!
//! - What the driver writes before a packet is judged in `header`, and what reaches the host is made anew of it.
//! - Packets are the [`engine`]'s to move; it knows no queues, and the lanes know no tap.
//! - A packet that cannot be sent or received is dropped and counted, by its reason. The card goes on.
//! - Who may send what to whom is the bridge's to say. The card counts.

mod command;
mod config;
mod config_space;
mod control;
mod counters;
mod device;
pub mod engine;
mod error;
mod features;
mod filter;
mod header;
mod host;
mod judge;
mod kept;
mod landing;
mod mac;
mod outgoing;
mod pair;
mod published;
mod receive;
mod shared;
mod transmit;

pub use config::{Config, ConfigError};
pub use device::Net;
pub use error::NetError;
pub use features::guest;
pub use host::HostError;
pub use mac::{Mac, MacError, Written};
