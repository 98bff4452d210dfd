//! A window whose device was given up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_bus::{Device, Written};
use virtio_backend::Record;

use crate::InterruptLine;
use crate::interrupt::Interrupt;
use crate::registers::{Readable, Writable};
use crate::saved::Saved;
use crate::status::Status;
use crate::transport::{MAGIC_VALUE, VENDOR_ID, VERSION};

/// What a driver finds of a device that nobody will serve any more: DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2), and an answer
/// to every access. A driver that resets it, and tries to set it up again, comes no further than to its features, of which
/// none are offered.
pub struct Wreck {
    device_id: u32,
    config_generation: u32,
    status: Mutex<Status>,
    interrupt: Interrupt,
}

impl Wreck {
    /// What is left of the device that was kept in `record`. A driver that used it is told at once, by one interrupt.
    pub fn new(record: &Record, line: Arc<dyn InterruptLine>) -> Arc<Self> {
        let saved = record.transport::<Saved>().load().ok().flatten();
        // Of what cannot be read nobody knows whether a driver uses it.
        let (device_id, status, generation) = saved.map_or((0, Status::RUNNING, 0), |saved| {
            (saved.device_id, Status::noted(saved.status), saved.config_generation)
        });
        let interrupt = Interrupt::new(line, Arc::default());
        let is_in_use = status.has(Status::DRIVER_OK);
        if is_in_use {
            // What was put into the used rings last, it may not have been told of either.
            interrupt.set_all();
        }
        let status = Mutex::new(status | Status::DEVICE_NEEDS_RESET);
        let wreck = Arc::new(Self { device_id, config_generation: generation, status, interrupt });
        if is_in_use {
            wreck.interrupt.inject();
        }
        wreck
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn value_of(&self, register: Readable) -> u32 {
        match register {
            Readable::MagicValue => MAGIC_VALUE,
            Readable::Version => VERSION,
            Readable::DeviceId => self.device_id,
            Readable::VendorId => VENDOR_ID,
            Readable::InterruptStatus => self.interrupt.status(),
            Readable::Status => self.status().bits(),
            Readable::ConfigGeneration => self.config_generation,
            Readable::DeviceFeatures | Readable::QueueNumMax | Readable::QueueReady | Readable::QueueReset => 0,
            Readable::ShmLenLow | Readable::ShmLenHigh | Readable::ShmBaseLow | Readable::ShmBaseHigh => u32::MAX,
        }
    }

    fn write_status(&self, value: u32) {
        let mut status = self.status();
        if value == 0 {
            *status = Status::default();
            self.interrupt.clear();
        } else {
            *status = status.after(Status::written(value), false) | Status::DEVICE_NEEDS_RESET;
        }
    }
}

impl Device for Wreck {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Readable::at(offset, data.len()) {
            Some(register) => data.copy_from_slice(&self.value_of(register).to_le_bytes()),
            None => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Written {
        if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            match Writable::at(offset, data.len()) {
                Some(Writable::Status) => self.write_status(value),
                Some(Writable::InterruptAck) => self.interrupt.acknowledge(value),
                _ => {}
            }
        }
        Written::Now
    }
}
