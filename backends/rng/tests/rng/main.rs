//! A source of entropy behind its registers, with drivers honest and otherwise, and a host that fails it. A name for
//! each row of the table of hostile inputs (g), and for each statement of the specification.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod harness;

mod buffers;
mod configuration;
mod driver;
mod failures;
mod rate;
mod shapes;
