//! The device model.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_backend::{Backend, Kind, Owner};

use crate::{Config, ConfigError};

/// The device.
pub struct Vsock {}

impl Kind for Vsock {
    type Config = Config;
    type Error = ConfigError;
    const NAME: &'static str = "vsock";
    const DEVICE_ID: u32 = 19;

    fn check(_config: &Config) -> Result<(), ConfigError> {
        Ok(())
    }

    fn exclusive(_config: &Config) -> Vec<String> {
        Vec::new()
    }

    fn host_end(_config: &Config) -> String {
        String::new()
    }

    fn open(_config: &mut Config, _owner: &Owner) -> Result<Vec<OwnedFd>, ConfigError> {
        Err(ConfigError::Descriptors)
    }

    fn make(_config: &Config, _descriptors: Vec<OwnedFd>) -> Result<Arc<dyn Backend>, ConfigError> {
        Err(ConfigError::Descriptors)
    }
}
