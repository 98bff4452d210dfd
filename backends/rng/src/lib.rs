//! virtio entropy device over the kernel's random numbers (virtio 1.2 §5).

mod config;
mod device;

pub use config::{Config, ConfigError};
pub use device::Rng;
