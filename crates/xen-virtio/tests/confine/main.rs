//! What a worker can still do when its guest has taken it over: each test has a process, confined as a worker is and by the
//! same code, try something, and says how that was denied. They need root, as `serve` does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]
#![allow(unsafe_code, reason = "system calls by their numbers, and processes between fork and exec")]
#![allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "arguments of system calls are words")]

mod calls;
mod harness;
mod life;
mod outside;
mod program;
mod rings;
