//! xen/public/hvm/ioreq.h: what Xen and an IOREQ server write into their shared pages

/// `struct ioreq`: one vCPU's slot.
///
/// `state` shares its byte with three flags, so it is written by one store of the whole byte.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ioreq {
    /// Address, port, or segment:bus:device.function above bit 32 and the register below.
    pub addr: u64,
    /// The data, or with [`DATA_IS_PTR`] its guest-physical address.
    pub data: u64,
    /// Repetitions.
    pub count: u32,
    /// Bytes of each access.
    pub size: u32,
    /// The vCPU's end of the event channel.
    pub vp_eport: u32,
    /// Unused.
    pub pad: u16,
    /// One of the states in bits 0 to 3, and the flags.
    pub bits: u8,
    /// One of the types.
    pub type_: u8,
}

/// Which of [`Ioreq::bits`] are the state.
pub const STATE_MASK: u8 = 0xf;
/// `STATE_IOREQ_NONE`: the slot is free.
pub const STATE_IOREQ_NONE: u8 = 0;
/// `STATE_IOREQ_READY`: Xen has put a request there.
pub const STATE_IOREQ_READY: u8 = 1;
/// `STATE_IOREQ_INPROCESS`: the server has taken it.
pub const STATE_IOREQ_INPROCESS: u8 = 2;
/// `STATE_IORESP_READY`: the server has answered.
pub const STATE_IORESP_READY: u8 = 3;

/// `data_is_ptr`
pub const DATA_IS_PTR: u8 = 1 << 4;
/// `dir`: set for `IOREQ_READ`.
pub const DIR_READ: u8 = 1 << 5;
/// `df`: repetitions go to lower addresses.
pub const DF: u8 = 1 << 6;

/// `IOREQ_TYPE_PIO`
pub const TYPE_PIO: u8 = 0;
/// `IOREQ_TYPE_COPY`: memory-mapped I/O.
pub const TYPE_COPY: u8 = 1;
/// `IOREQ_TYPE_PCI_CONFIG`
pub const TYPE_PCI_CONFIG: u8 = 2;
/// `IOREQ_TYPE_TIMEOFFSET`
pub const TYPE_TIMEOFFSET: u8 = 7;
/// `IOREQ_TYPE_INVALIDATE`: mappings of the guest's memory are out of date.
pub const TYPE_INVALIDATE: u8 = 8;

/// `IOREQ_BUFFER_SLOT_NUM`: entries of the buffered page, behind two u32 positions.
pub const BUFFER_SLOT_NUM: usize = 511;
