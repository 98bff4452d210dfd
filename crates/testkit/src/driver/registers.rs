//! Register accesses as a vCPU makes them, and the steps that a driver takes with them.

use std::sync::{Arc, mpsc};

use io_bus::{Device, Space, Written};

use super::RawQueue;
use crate::xen::Vcpu;

/// The registers of virtio-mmio version 2 (virtio 1.2 §4.2.2), by offset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the specification's names")]
pub enum Register {
    MagicValue = 0x000,
    Version = 0x004,
    DeviceId = 0x008,
    VendorId = 0x00c,
    DeviceFeatures = 0x010,
    DeviceFeaturesSel = 0x014,
    DriverFeatures = 0x020,
    DriverFeaturesSel = 0x024,
    QueueSel = 0x030,
    QueueNumMax = 0x034,
    QueueNum = 0x038,
    QueueReady = 0x044,
    QueueNotify = 0x050,
    InterruptStatus = 0x060,
    InterruptAck = 0x064,
    Status = 0x070,
    QueueDescLow = 0x080,
    QueueDescHigh = 0x084,
    QueueDriverLow = 0x090,
    QueueDriverHigh = 0x094,
    QueueDeviceLow = 0x0a0,
    QueueDeviceHigh = 0x0a4,
    ShmSel = 0x0ac,
    ShmLenLow = 0x0b0,
    ShmLenHigh = 0x0b4,
    ShmBaseLow = 0x0b8,
    ShmBaseHigh = 0x0bc,
    QueueReset = 0x0c0,
    ConfigGeneration = 0x0fc,
    /// Where configuration space starts.
    Config = 0x100,
}

/// Device status bits (virtio 1.2 §2.1).
#[expect(missing_docs, reason = "the specification's names")]
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// A window of registers, reached by accesses that trap. Each returns when the vCPU would go on.
pub trait Registers {
    /// Loads `size` bytes, 1, 2, 4 or 8.
    fn load(&self, offset: u64, size: usize) -> u64;

    /// Stores the low `size` bytes of `value`.
    fn store(&self, offset: u64, size: usize, value: u64);

    /// Loads a register.
    fn read(&self, register: Register) -> u32 {
        u32::try_from(self.load(register as u64, 4)).expect("a load has no more bits than asked for")
    }

    /// Stores to a register.
    fn write(&self, register: Register, value: u32) {
        self.store(register as u64, 4, value.into());
    }

    /// Device status.
    fn status(&self) -> u32 {
        self.read(Register::Status)
    }

    /// Sets status bits beside those that are set.
    fn add_status(&self, bits: u32) {
        self.write(Register::Status, self.status() | bits);
    }

    /// Resets the device, and returns when that is done.
    fn reset(&self) {
        self.write(Register::Status, 0);
    }

    /// All features that the device offers.
    fn offered_features(&self) -> u64 {
        let word = |index: u32| {
            self.write(Register::DeviceFeaturesSel, index);
            u64::from(self.read(Register::DeviceFeatures))
        };
        word(0) | word(1) << 32
    }

    /// From reset to FEATURES_OK with these features; false if the device does not accept them.
    fn negotiate(&self, features: u64) -> bool {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        for (index, shift) in [(0, 0), (1, 32)] {
            self.write(Register::DriverFeaturesSel, index);
            self.write(Register::DriverFeatures, low_half(features >> shift));
        }
        self.add_status(status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// Tells the device where a queue is, and that it is ready.
    fn set_up_queue(&self, index: u32, queue: &RawQueue) {
        self.write(Register::QueueSel, index);
        self.write(Register::QueueNum, queue.size().into());
        self.write_address(Register::QueueDescLow, Register::QueueDescHigh, queue.desc_table());
        self.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, queue.avail_ring());
        self.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, queue.used_ring());
        self.write(Register::QueueReady, 1);
    }

    /// Writes a 64-bit address to its two registers.
    fn write_address(&self, low: Register, high: Register, address: u64) {
        self.write(low, low_half(address));
        self.write(high, low_half(address >> 32));
    }

    /// From reset to DRIVER_OK with these features and one queue. Panics if the device refuses.
    fn bring_up(&self, features: u64, queue: &RawQueue) {
        assert!(self.negotiate(features), "the device refuses features {features:#x}");
        self.set_up_queue(0, queue);
        self.add_status(status::DRIVER_OK);
    }

    /// Tells the device of new buffers.
    fn notify(&self, queue: u32) {
        self.write(Register::QueueNotify, queue);
    }

    /// Reads what interrupted, and acknowledges it.
    fn acknowledge(&self) -> u32 {
        let causes = self.read(Register::InterruptStatus);
        self.write(Register::InterruptAck, causes);
        causes
    }
}

#[expect(clippy::cast_possible_truncation, reason = "is what it is for")]
fn low_half(value: u64) -> u32 {
    value as u32
}

/// Registers without a hypervisor between: the calling thread is the vCPU.
impl<D: Device + ?Sized> Registers for Arc<D> {
    fn load(&self, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        (**self).read(offset, bytes.get_mut(..size).expect("an access of at most 8 bytes"));
        u64::from_le_bytes(bytes)
    }

    fn store(&self, offset: u64, size: usize, value: u64) {
        let bytes = value.to_le_bytes();
        if let Written::Later(deferral) = (**self).write(offset, bytes.get(..size).expect("at most 8 bytes")) {
            let (answer, answered) = mpsc::channel::<()>();
            deferral.then(move || drop(answer));
            // Nothing is sent: the other end goes when the write is done.
            let end = answered.recv_timeout(super::raw_queue::PATIENCE);
            assert_eq!(end, Err(mpsc::RecvTimeoutError::Disconnected), "a write of {value:#x} at {offset:#x} hangs");
        }
    }
}

/// Registers behind the fake hypervisor: a vCPU, and where the window is in its guest's memory.
#[derive(Clone)]
pub struct VcpuWindow {
    /// Who makes the accesses.
    pub vcpu: Vcpu,
    /// Guest address of the window.
    pub base: u64,
}

impl Registers for VcpuWindow {
    fn load(&self, offset: u64, size: usize) -> u64 {
        let access = self.vcpu.read(Space::Mmio, self.base + offset, size_of_access(size));
        access.unwrap_or_else(|fault| panic!("{fault:?} at register {offset:#x}"))
    }

    fn store(&self, offset: u64, size: usize, value: u64) {
        let access = self.vcpu.write(Space::Mmio, self.base + offset, size_of_access(size), value);
        access.unwrap_or_else(|fault| panic!("{fault:?} at register {offset:#x}"));
    }
}

fn size_of_access(size: usize) -> u32 {
    u32::try_from(size).expect("an access of at most 8 bytes")
}
