//! virtio-net over taps and passt (virtio 1.2 §5).

mod config;
mod device;

pub use config::{Config, ConfigError};
pub use device::Net;
