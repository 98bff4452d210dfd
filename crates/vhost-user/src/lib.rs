//! Serves a virtio device on a vhost-user socket: a transport beside the register file of virtio-mmio.
//!
//! The front-end, a virtual machine monitor, sends messages where a driver would write registers, and shares its
//! guest's memory where a guest's memory would be mapped page by page. The crate `vhost` reads and checks the messages;
//! what they set up is worked by the lanes of `virtio-backend`, as under any transport. No backend knows of it.
//!
//! - The front-end is not trusted more than a guest: every number is checked before use, every descriptor is of the
//!   kind that it should be, and what it does wrong costs its connection.
//! - Only the thread that serves the socket starts and stops lanes, and it waits for their end. When it answers that a
//!   ring has stopped, nothing of that ring is in flight.
//! - Nothing stands between a driver's kick and its lane, nor between the lane and the driver's interrupt.
//! - A connection leaves nothing behind: when it ends, lanes have ended and the memory is unmapped.
//!
//! One thing a back-end cannot defend itself against: a front-end that shortens the file behind shared memory. The
//! kernel kills a process that touches what was cut off. So a process should serve one device.
//!
//! The protocol is specified by QEMU, docs/interop/vhost-user.rst; "the specification" below means that one.

mod channel;
mod connection;
mod device;
mod early;
mod eventfd;
mod lanes;
mod line;
mod memory;
mod message;
mod server;
mod session;
mod vring;

pub use server::{Server, Stopper};
