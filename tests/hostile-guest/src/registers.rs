//! Registers and bits (virtio 1.2 §4.2.2, §2.1, §6).

macro_rules! registers {
    ($($name:ident = $offset:literal,)+) => {
        $(#[allow(missing_docs, reason = "named as in the specification")] pub const $name: u64 = $offset;)+
    };
}

registers! {
    MAGIC_VALUE = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030,
    QUEUE_NUM_MAX = 0x034,
    QUEUE_NUM = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESC = 0x080,
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
    SHM_SEL = 0x0ac,
    SHM_LEN = 0x0b0,
    SHM_BASE = 0x0b8,
    QUEUE_RESET = 0x0c0,
    CONFIG_GENERATION = 0x0fc,
    CONFIG = 0x100,
    WINDOW_END = 0x200,
}

/// Bits of [`STATUS`].
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It has a driver.
    pub const DRIVER: u32 = 2;
    /// It is set up.
    pub const DRIVER_OK: u32 = 4;
    /// It has agreed on features.
    pub const FEATURES_OK: u32 = 8;
    /// The device has given up until it is reset.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
}

/// Feature bits.
pub mod feature {
    /// Tables of descriptors in place of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Interrupts and kicks by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not the legacy interface.
    pub const VERSION_1: u64 = 1 << 32;
    /// Queues can be reset one by one.
    pub const RING_RESET: u64 = 1 << 40;
}

/// Device IDs (virtio 1.2 §5).
pub mod id {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const ENTROPY: u32 = 4;
    pub const SOCKET: u32 = 19;
}
