//! virtio entropy device (virtio 1.2 §5.4) over the kernel's random numbers.
//!
//! An [`Rng`] has one queue, into which the driver puts buffers to be filled. It fills them from a [`Source`], which is
//! getrandom(2) unless a test says otherwise, and at most as fast as the [`Config`] allows.
//!
//! - A buffer is filled with what the source gave, at least one byte, or stays where it is until there is some.
//! - A timer wakes the device for a buffer that waits; the driver's kicks change nothing about that.

mod config;
mod counters;
mod device;
mod lent;
mod source;
mod worker;

pub use config::{Config, ConfigError};
pub use device::Rng;
pub use source::{Kernel, Source};
