//! A socket device behind the register file, with a driver that is written by hand on one side and unix sockets on the
//! other. One file a subject, and a name for each row of the table of hostile inputs (g: sockets among others).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod harness;
mod stream;

mod connecting;
mod credit;
mod driver;
mod ending;
mod fields;
mod flow;
mod host_end;
mod hostile;
mod interruption;
mod reaching;
