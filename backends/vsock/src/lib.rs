//! virtio-vsock (virtio 1.2 §5.10) over unix sockets: stream connections between a guest and programs on the host.
//!
//! The guest's connection to port P of CID 2, the host, goes to whoever listens at the unix socket `<socket>_P`. A
//! program on the host connects to `<socket>`, says `CONNECT P` and a newline, and is then connected to port P of the
//! guest, as soon as it has read `OK` and a port number.
//!
//! - What the guest says ends in `from_guest`, what the host says in `from_host`; `to_guest` alone fills the guest's
//!   buffers. They meet in the `hub`, where a connection is remembered and has its turn.
//! - Replies are no queue: a connection keeps in mind what it owes its guest. So a guest that asks without end and
//!   never listens has a bounded number of connections, each with bounded memory.
//! - Data moves between guest memory and sockets directly. Only what a socket does not take is kept, and never more
//!   than the guest was given credit for.
//! - Connections end with the process. If it died, the next one tells the guest so: see `interruption`.

mod asking;
mod backlog;
mod config;
mod connection;
mod counters;
mod credit;
mod deadlines;
mod device;
mod from_guest;
mod from_host;
mod greeting;
mod host;
mod hub;
mod interruption;
mod kept;
mod packet;
mod table;
mod to_guest;
mod worker;

pub use config::{Config, ConfigError};
pub use device::Vsock;
