//! What lanes and other threads meet at: the standard library's locks, or those of `loom`, with which `make models` tries
//! every order of events.

#[cfg(not(loom))]
pub(crate) use std::sync::Mutex;

#[cfg(loom)]
pub(crate) use loom::sync::Mutex;
