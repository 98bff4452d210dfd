//! A window without a device.

use io_bus::{Device, Written};

use crate::registers::Readable;
use crate::transport::{MAGIC_VALUE, VERSION};

/// What a driver finds where there is no device: the registers of one with DeviceID 0, which virtio 1.2 §4.2.2 has drivers
/// pass by in silence.
#[derive(Debug)]
pub struct Placeholder;

impl Device for Placeholder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Readable::at(offset, data.len()) {
            Some(Readable::MagicValue) => data.copy_from_slice(&MAGIC_VALUE.to_le_bytes()),
            Some(Readable::Version) => data.copy_from_slice(&VERSION.to_le_bytes()),
            _ => data.fill(0),
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Written {
        Written::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_4_2_2_a_driver_sees_virtio_registers_of_no_device() {
        let read = |offset| {
            let mut data = [0xff; 4];
            Placeholder.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!([read(0), read(4), read(8), read(0x70), read(0x100)], [0x7472_6976, 2, 0, 0, 0]);
    }

    #[test]
    fn c01_an_access_of_an_odd_width_reads_zero() {
        for len in [1, 2, 3, 8] {
            let mut data = vec![0xff; len];
            Placeholder.read(0, &mut data);
            assert_eq!(data, vec![0; len]);
        }
    }
}
