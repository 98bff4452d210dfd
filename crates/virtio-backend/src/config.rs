//! Configuration space (virtio 1.2 §2.5): accesses of any width at any alignment, cut to what the
//! device has, once for all devices.

use std::sync::Arc;

use crate::{Backend, Fault, guarded};

/// A device's configuration space, as a transport reads and writes it.
pub struct ConfigSpace {
    backend: Arc<dyn Backend>,
}

impl ConfigSpace {
    /// That of this device.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// Fills `data` from `offset` on; what lies beyond the device's fields is zero.
    ///
    /// # Errors
    /// The device panicked. `data` is zero from where it had not written.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Fault> {
        data.fill(0);
        let Some((start, len)) = self.clip(offset, data.len()) else { return Ok(()) };
        let Some(fields) = data.get_mut(..len) else { return Ok(()) };
        guarded(|| {
            self.backend.read_config(start, fields);
            Ok(())
        })
    }

    /// Writes what of `data` lies within the device's fields; false if nothing does.
    ///
    /// # Errors
    /// The device panicked.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<bool, Fault> {
        let Some((start, len)) = self.clip(offset, data.len()) else { return Ok(false) };
        let Some(fields) = data.get(..len) else { return Ok(false) };
        guarded(|| {
            self.backend.write_config(start, fields);
            Ok(true)
        })
    }

    /// Where the access starts and how many bytes of it are the device's: at least one.
    fn clip(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let start = usize::try_from(offset).ok()?;
        let left = self.backend.identity().config_len.checked_sub(start)?;
        let len = len.min(left);
        (len > 0).then_some((start, len))
    }
}
