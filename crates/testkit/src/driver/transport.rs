//! virtio-mmio as a driver of `virtio_drivers` sees it: its own transport wants real registers, which
//! do not trap in process.

use virtio_drivers::{
    PhysAddr, Result,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{GuestHal, Register, Registers};

/// A `virtio_drivers` transport over any window of registers, of a guest that [`GuestHal`] has booted on this thread.
pub struct MmioTransport<R>(pub R);

impl<R: Registers> Transport for MmioTransport<R> {
    fn device_type(&self) -> DeviceType {
        self.0.read(Register::DeviceId).try_into().expect("a device that virtio_drivers knows")
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.offered_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        for (index, word) in (0..).zip(words(features | GuestHal::platform_features())) {
            self.0.write(Register::DriverFeaturesSel, index);
            self.0.write(Register::DriverFeatures, word);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.write(Register::QueueSel, queue.into());
        self.0.read(Register::QueueNumMax)
    }

    fn notify(&mut self, queue: u16) {
        self.0.notify(queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.status())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.write(Register::Status, status.bits());
    }

    fn set_guest_page_size(&mut self, _page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.0.write(Register::QueueSel, queue.into());
        self.0.write(Register::QueueNum, size);
        self.0.write_address(Register::QueueDescLow, Register::QueueDescHigh, descriptors);
        self.0.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, driver);
        self.0.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, device);
        self.0.write(Register::QueueReady, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.write(Register::QueueSel, queue.into());
        self.0.write(Register::QueueReady, 0);
        assert_eq!(self.0.read(Register::QueueReady), 0, "the queue is still in use");
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.write(Register::QueueSel, queue.into());
        self.0.read(Register::QueueReady) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.0.acknowledge())
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read(Register::ConfigGeneration)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        for (at, part) in parts(offset, size_of::<T>()).zip(value.as_mut_bytes().chunks_mut(4)) {
            let bytes = self.0.load(at, part.len()).to_le_bytes();
            part.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        for (at, part) in parts(offset, size_of::<T>()).zip(value.as_bytes().chunks(4)) {
            let value = part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.0.store(at, part.len(), value);
        }
        Ok(())
    }
}

/// Where the accesses of at most 32 bits go that an access to configuration space is made of.
fn parts(offset: usize, len: usize) -> impl Iterator<Item = u64> {
    (offset..offset + len).step_by(4).map(|at| Register::Config as u64 + at as u64)
}

fn words(features: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
