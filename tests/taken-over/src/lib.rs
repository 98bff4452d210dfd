//! Plays whoever has taken a worker over: has a process that runs make a system call of our choice, in its own name, and tells what
//! came of it. Tests of confinement in process ask the same of a process that does nothing else; this asks a live one, which
//! serves a guest at the time and has open what that takes.

mod attempts;
mod borrowed;

pub use attempts::{ATTEMPTS, Attempt, Denial};
pub use borrowed::{Borrowed, Outcome};
