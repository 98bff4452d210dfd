//! virtio-console over ptys, sockets and files (virtio 1.2 §5).

mod config;
mod device;

pub use config::{Config, ConfigError};
pub use device::Console;
