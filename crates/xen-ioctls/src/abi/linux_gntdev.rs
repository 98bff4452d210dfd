//! linux/include/uapi/xen/gntdev.h, and the numbers of xen/public/grant_table.h it refers to

use super::ioc_none;

/// `struct ioctl_gntdev_grant_ref`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantRef {
    /// The domain that granted.
    pub domid: u32,
    /// Its grant.
    pub reference: u32,
}

/// `struct ioctl_gntdev_map_grant_ref`, for one grant; more follow `refs` in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MapGrantRef {
    /// How many grants.
    pub count: u32,
    /// Zero.
    pub pad: u32,
    /// Out: where in the descriptor to mmap them.
    pub index: u64,
    /// The first of them.
    pub refs: [GrantRef; 1],
}

/// `struct ioctl_gntdev_unmap_grant_ref`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UnmapGrantRef {
    /// As the mapping call gave it.
    pub index: u64,
    /// How many pages.
    pub count: u32,
    /// Zero.
    pub pad: u32,
}

/// The end of a copy that is a grant.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct CopyForeign {
    /// The grant.
    pub reference: u32,
    /// Where in its page.
    pub offset: u16,
    /// Who granted.
    pub domid: u16,
}

/// One end of a copy: an address, or a grant.
#[repr(C)]
#[derive(Clone, Copy)]
pub union CopyPtr {
    /// An address of ours.
    pub virt: u64,
    /// A grant.
    pub foreign: CopyForeign,
}

/// `struct gntdev_grant_copy_segment`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GrantCopySegment {
    /// From where.
    pub source: CopyPtr,
    /// To where.
    pub dest: CopyPtr,
    /// Bytes; neither end may cross a page.
    pub len: u16,
    /// [`GNTCOPY_SOURCE_GREF`] and [`GNTCOPY_DEST_GREF`].
    pub flags: u16,
    /// Out: [`GNTST_OKAY`] or a negative `GNTST_*`.
    pub status: i16,
}

/// `struct ioctl_gntdev_grant_copy`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GrantCopy {
    /// How many segments.
    pub count: u32,
    /// Address of the segments.
    pub segments: u64,
}

/// `IOCTL_GNTDEV_MAP_GRANT_REF`, with the size of one grant whatever the count.
pub const MAP_GRANT_REF: u32 = ioc_none(b'G', 0, size_of::<MapGrantRef>());
/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`
pub const UNMAP_GRANT_REF: u32 = ioc_none(b'G', 1, size_of::<UnmapGrantRef>());
/// `IOCTL_GNTDEV_GRANT_COPY`
pub const GRANT_COPY: u32 = ioc_none(b'G', 8, size_of::<GrantCopy>());

/// `GNTCOPY_source_gref` (xen/public/grant_table.h)
pub const GNTCOPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`
pub const GNTCOPY_DEST_GREF: u16 = 2;
/// `GNTST_okay`
pub const GNTST_OKAY: i16 = 0;
/// `GNTST_general_error`
pub const GNTST_GENERAL_ERROR: i16 = -1;
/// `GNTST_bad_domain`: there is none of this id.
pub const GNTST_BAD_DOMAIN: i16 = -2;
/// `GNTST_bad_gntref`: its grant table has no such entry, or none for us.
pub const GNTST_BAD_GNTREF: i16 = -3;
/// `GNTST_no_device_space`
pub const GNTST_NO_DEVICE_SPACE: i16 = -7;
/// `GNTST_permission_denied`
pub const GNTST_PERMISSION_DENIED: i16 = -8;
/// `GNTST_bad_page`: there is no memory.
pub const GNTST_BAD_PAGE: i16 = -9;
/// `GNTST_eagain`: the page is being paged in.
pub const GNTST_EAGAIN: i16 = -12;
/// `GNTST_no_space`: Xen is out of handles for mappings.
pub const GNTST_NO_SPACE: i16 = -13;
