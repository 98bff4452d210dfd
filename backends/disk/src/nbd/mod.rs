//! An export of an NBD server as a disk: storage that another machine has.
//!
//! The protocol is that of the NBD project (doc/proto.md): the fixed newstyle handshake, then requests by cookie, as many
//! at a time as a lane has, answered in any order. Every lane has a connection of its own where the server allows
//! several.
//!
//! - The lanes wait for nothing: hands are shaken on a thread of the disk's (dialer.rs), sockets never block.
//! - Connecting and looking up names takes a right: that is for whoever may (dial.rs), and the dialer asks for it.
//! - Data go between the socket and the guest's memory; only small ones are copied on their way in.
//! - A server that goes away is waited for. What it owed is sent again, and what it may have forgotten is told to the
//!   guest (life.rs).
//! - A server is not believed: a hostile one can spoil its own disk's contents, and nothing else.

mod connection;
mod counters;
mod coverage;
mod dial;
mod dialer;
mod engine;
mod error;
mod export;
mod handshake;
pub(crate) mod kind;
mod life;
mod patient;
mod receiver;
mod sender;
mod shared;
mod storage;
mod task;
mod timer;
mod uri;
mod wire;

pub use error::NbdError;
pub use export::Export;
pub use shared::Patience;
pub use storage::{Candidate, Nbd};
pub use uri::{Address, AddressError};
