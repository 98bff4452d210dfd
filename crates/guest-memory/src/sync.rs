//! What lanes and the pump meet at: the standard library's locks and atomics, or those of `loom`, with which `make models`
//! tries every order of events. Counters and clocks, on which nothing depends, stay out of the models.

#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicU64};

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicU64};
