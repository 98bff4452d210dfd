//! linux/include/uapi/xen/privcmd.h

use super::{ioc_none, ioc_write};

/// `struct privcmd_mmapbatch_v2`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MmapBatchV2 {
    /// Pages to map.
    pub num: u32,
    /// The domain they belong to.
    pub dom: u16,
    /// Where to: the start of an area from mmap on the same descriptor.
    pub addr: u64,
    /// Address of `num` frame numbers, 64 bits each.
    pub arr: u64,
    /// Address of `num` ints for what became of each page: 0 or a negative errno.
    pub err: u64,
}

/// `struct privcmd_dm_op_buf`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DmOpBuf {
    /// Its address.
    pub uptr: u64,
    /// Its bytes, at most 4096.
    pub size: u64,
}

/// `struct privcmd_dm_op`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DmOp {
    /// The domain operated on.
    pub dom: u16,
    /// Buffers, at most 16; the first holds the operation.
    pub num: u16,
    /// Address of `num` [`DmOpBuf`]s.
    pub ubufs: u64,
}

/// `struct privcmd_mmap_resource`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MmapResource {
    /// The domain whose resource it is.
    pub dom: u16,
    /// One of the types in [`super::memory`].
    pub type_: u32,
    /// Which one of that type.
    pub id: u32,
    /// Its first frame to map.
    pub idx: u32,
    /// Frames to map; 0 with `addr` 0 asks for the resource's size.
    pub num: u64,
    /// Where to: the start of an area from mmap on the same descriptor.
    pub addr: u64,
}

/// `struct privcmd_irqfd` (Linux 6.12)
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Irqfd {
    /// Address of the `struct xen_dm_op` to issue for each event.
    pub dm_op: u64,
    /// Its bytes.
    pub size: u32,
    /// The eventfd.
    pub fd: u32,
    /// 0 to assign, [`IRQFD_FLAG_DEASSIGN`] to take back.
    pub flags: u32,
    /// The domain operated on.
    pub dom: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// `PRIVCMD_IRQFD_FLAG_DEASSIGN`
pub const IRQFD_FLAG_DEASSIGN: u32 = 1;

/// `IOCTL_PRIVCMD_MMAPBATCH_V2`
pub const MMAPBATCH_V2: u32 = ioc_none(b'P', 4, size_of::<MmapBatchV2>());
/// `IOCTL_PRIVCMD_DM_OP`
pub const DM_OP: u32 = ioc_none(b'P', 5, size_of::<DmOp>());
/// `IOCTL_PRIVCMD_RESTRICT`
pub const RESTRICT: u32 = ioc_none(b'P', 6, size_of::<u16>());
/// `IOCTL_PRIVCMD_MMAP_RESOURCE`
pub const MMAP_RESOURCE: u32 = ioc_none(b'P', 7, size_of::<MmapResource>());
/// `IOCTL_PRIVCMD_IRQFD`
pub const IRQFD: u32 = ioc_write(b'P', 8, size_of::<Irqfd>());
