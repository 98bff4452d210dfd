//! virtio-console (virtio 1.2 §5.3) over ptys, sockets, files and the program's own terminal.
//!
//! A [`Console`] has one port or several; each port has a *sink*, its end on the host. Two threads serve it: the lane
//! works the queues and knows no descriptors, the *host thread* works the sinks and knows no queues. They meet in a
//! port's two bounded buffers.
//!
//! - What the guest prints never waits for someone who is not there: the last 64 KiB are kept for whoever comes next.
//! - Bytes pass as they are, both ways. What they do to a terminal is between the guest and its reader.
//! - The buffers are in memory that outlives the process: what a guest was told is printed, is.
//! - The host thread lives as long as the device: a crashed guest's last words can still be read.

mod backlog;
mod config;
mod control;
mod counters;
mod device;
mod error;
mod host;
mod kept;
mod open;
mod port;
mod queues;
mod shared;
mod worker;

pub use config::{Config, Port, Sink};
pub use device::Console;
pub use error::ConfigError;
