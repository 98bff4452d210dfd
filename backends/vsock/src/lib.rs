//! virtio-vsock over unix sockets (virtio 1.2 §5).

mod config;
mod device;

pub use config::{Config, ConfigError};
pub use device::Vsock;
