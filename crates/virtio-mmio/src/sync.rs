//! What the thread of register accesses and lanes meet at: the standard library's locks and atomics, or those of `loom`, with
//! which `make models` tries every order of events. Counters, on which nothing depends, stay out of the models.

#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicU32};

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicU32};
