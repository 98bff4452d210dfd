//! Client of xenstored, for programs that live on tokio: nodes, transactions, watches.
//!
//! - One task owns the connection and all its state; a [`Store`] is a cheap way to talk to that task.
//! - A lost connection is an ordinary event. Requests in flight fail with [`Error::ConnectionLost`]; the client
//!   connects again by itself, registers all watches again, and then every [`Watch`] reports its own path: "anything
//!   below may have changed, read it again". Whoever re-reads on events needs no other recovery.
//! - Events are coalesced, never dropped: a flood costs bounded memory, and silence means that nothing changed.
//! - Nothing is believed. Values and names are whatever a guest wrote; a reply that breaks the protocol ends the
//!   connection, never the program.
//!
//! ```no_run
//! # async fn example() -> Result<(), xenstore::Error> {
//! let store = xenstore::Store::connect(xenstore::Options::default()).await?;
//! let mut disks = store.watch("backend/virtio_disk").await?;
//! loop {
//!     let changed = disks.next().await;
//!     println!("{changed} is now {:?}", store.read(&changed).await?);
//! }
//! # }
//! ```
//!
//! Protocol: Xen's docs/misc/xenstore.txt and public/io/xs_wire.h.

mod client;
mod connection;
mod error;
mod perms;
mod session;
mod transaction;
mod transport;
mod watch;
pub mod wire;

pub use client::{Options, Store, View};
pub use error::Error;
pub use perms::{Access, Permission};
pub use transaction::Transaction;
pub use transport::Address;
pub use watch::Watch;
pub use wire::ErrorCode;
