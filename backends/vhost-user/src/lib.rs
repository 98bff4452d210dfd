//! A virtio device whose backend is another program, reached by vhost-user.
//!
//! A backend expects to see the guest's memory. It gets other memory, a sealed file of ours: in it lie *shadow rings*,
//! whose driver we are, and the data of what is in flight, copied from the guest and to it. So any backend can be used,
//! wherever the guest's memory is and however it can be reached, and none of them ever has any of it.
//!
//! - Nothing that a backend writes, on its socket or in the memory, is believed before it is checked; what is wrong
//!   costs its device and no other.
//! - No conversation with a backend lasts longer than a few seconds, and the guest's register accesses wait for none.
//! - A backend that dies is waited for, for ever; requests that it had not finished are given to the one that comes in
//!   its place.
//! - Each session of a backend has memory of its own: one that was given up and is not gone spoils nothing.

mod asking;
mod channel;
mod config;
mod config_space;
mod connection;
mod counters;
mod device;
mod device_type;
mod error;
mod introduction;
mod kept;
mod layout;
mod memory;
mod queue;
mod retry;
mod session;
mod shadow;
mod shared;
mod trouble;
mod wire;
mod worker;

pub use config::{Config, ConfigError, Found};
pub use device::VhostUser;
pub use device_type::DeviceType;
pub use error::VhostUserError;
pub use wire::ConnectionError;
