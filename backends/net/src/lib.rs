//! virtio-net over taps and passt (virtio 1.2 §5).

mod config;
mod device;
mod engine;
mod host;

pub use config::{Config, ConfigError};
pub use device::Net;
