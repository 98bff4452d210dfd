//! The register layout (virtio 1.2 §4.2.2, table 4.1), version 2.
//!
//! What a register may be used for is its type: a [`Readable`] can be read, a [`Writable`] written,
//! and one that allows both is in both tables. Registers of the legacy interface are not here.

/// Bytes of a register; nothing but an aligned access of this width reaches one (§4.2.2.2).
const WIDTH: usize = 4;

/// Where the registers end and configuration space starts.
pub(crate) const CONFIG_START: u64 = 0x100;

macro_rules! registers {
    ($(#[$doc:meta])* $table:ident { $($(#[$register_doc:meta])* $name:ident = $offset:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $table {
            $($(#[$register_doc])* $name = $offset,)+
        }

        impl $table {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            /// The register that an access of `len` bytes at `offset` is for, if there is one.
            pub(crate) fn at(offset: u64, len: usize) -> Option<Self> {
                match offset {
                    $($offset if len == WIDTH => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

registers! {
    /// Registers that can be read.
    Readable {
        /// "virt".
        MagicValue = 0x000,
        /// Of the register layout.
        Version = 0x004,
        DeviceId = 0x008,
        VendorId = 0x00c,
        /// The 32 offered features that [`Writable::DeviceFeaturesSel`] selects.
        DeviceFeatures = 0x010,
        /// 0 if the selected queue does not exist.
        QueueNumMax = 0x034,
        QueueReady = 0x044,
        InterruptStatus = 0x060,
        Status = 0x070,
        /// Shared memory regions, of which there are none: all-ones.
        ShmLenLow = 0x0b0,
        ShmLenHigh = 0x0b4,
        ShmBaseLow = 0x0b8,
        ShmBaseHigh = 0x0bc,
        /// 1 as long as a reset of the selected queue is in progress.
        QueueReset = 0x0c0,
        ConfigGeneration = 0x0fc,
    }
}

registers! {
    /// Registers that can be written.
    Writable {
        DeviceFeaturesSel = 0x014,
        /// The 32 accepted features that [`Writable::DriverFeaturesSel`] selects.
        DriverFeatures = 0x020,
        DriverFeaturesSel = 0x024,
        /// Which queue the other queue registers are about.
        QueueSel = 0x030,
        QueueNum = 0x038,
        QueueReady = 0x044,
        /// The doorbell: the index of a queue with new buffers.
        QueueNotify = 0x050,
        InterruptAck = 0x064,
        /// Status bits to set; 0 resets the device.
        Status = 0x070,
        QueueDescLow = 0x080,
        QueueDescHigh = 0x084,
        QueueDriverLow = 0x090,
        QueueDriverHigh = 0x094,
        QueueDeviceLow = 0x0a0,
        QueueDeviceHigh = 0x0a4,
        ShmSel = 0x0ac,
        QueueReset = 0x0c0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_reached_at_its_own_offset_and_width_only() {
        for &register in Readable::ALL {
            let offset = register as u64;
            assert_eq!(Readable::at(offset, 4), Some(register));
            assert!((1..4).all(|inside| Readable::at(offset + inside, 4).is_none()), "{register:?} unaligned");
            assert!(
                [0, 1, 2, 3, 5, 8].into_iter().all(|len| Readable::at(offset, len).is_none()),
                "{register:?} width"
            );
        }
        assert!(Writable::ALL.iter().all(|&register| Writable::at(register as u64, 4) == Some(register)));
    }

    #[test]
    fn registers_are_aligned_and_below_configuration_space() {
        let offsets = Readable::ALL.iter().map(|&r| r as u64).chain(Writable::ALL.iter().map(|&w| w as u64));
        for offset in offsets {
            assert!(offset % 4 == 0 && offset < CONFIG_START, "{offset:#x}");
        }
    }

    #[test]
    fn only_queue_ready_status_and_queue_reset_are_read_and_written() {
        let both: Vec<_> = Readable::ALL.iter().filter(|&&r| Writable::at(r as u64, 4).is_some()).collect();
        assert_eq!(both, [&Readable::QueueReady, &Readable::Status, &Readable::QueueReset]);
    }
}
