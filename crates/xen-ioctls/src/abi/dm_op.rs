//! xen/public/hvm/dm_op.h: operations of a device model on its guest
//!
//! The C side is a union; here each member is a struct of its own, which [`DmOp`] carries as bytes.
//! All padding is zero, which Xen checks.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct xen_dm_op`: any operation, its member at the start of `u`.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmOp {
    /// One of the `XEN_DMOP_*` numbers.
    pub op: u32,
    /// Zero.
    pub pad: u32,
    /// What the operation takes and gives; the rest is zero.
    pub u: [u8; UNION_SIZE],
}

/// Bytes of the C union.
const UNION_SIZE: usize = 24;

impl DmOp {
    /// The operation `op` on `member`, one of this file's structs.
    pub fn new<T: IntoBytes + Immutable>(op: u32, member: &T) -> Self {
        const { assert!(size_of::<T>() <= UNION_SIZE, "a member of the union") };
        let mut u = [0; UNION_SIZE];
        for (to, from) in u.iter_mut().zip(member.as_bytes()) {
            *to = *from;
        }
        Self { op, pad: 0, u }
    }

    /// What Xen wrote back.
    pub fn member<T: FromBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= UNION_SIZE, "a member of the union") };
        T::read_from_prefix(&self.u).map_or_else(|_| T::new_zeroed(), |(member, _)| member)
    }
}

/// Declares the union's members.
macro_rules! members {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)+ })+) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)+
        }
    )+};
}

members! {
    /// `struct xen_dm_op_create_ioreq_server`
    struct CreateIoreqServer {
        /// 0: no buffered page (the only choice on Arm); 1: legacy; 2: atomic.
        handle_bufioreq: u8,
        /// Zero.
        pad: [u8; 3],
        /// Out.
        id: u16,
    }

    /// `struct xen_dm_op_get_ioreq_server_info`
    struct GetIoreqServerInfo {
        /// Which server.
        id: u16,
        /// [`NO_GFNS`]
        flags: u16,
        /// Out: the event channel of the buffered page.
        bufioreq_port: u32,
        /// Out, unless `NO_GFNS`.
        ioreq_gfn: u64,
        /// Out, unless `NO_GFNS`.
        bufioreq_gfn: u64,
    }

    /// `struct xen_dm_op_ioreq_server_range`
    struct IoreqServerRange {
        /// Which server.
        id: u16,
        /// Zero.
        pad: u16,
        /// `XEN_DMOP_IO_RANGE_*`
        type_: u32,
        /// First.
        start: u64,
        /// Last, inclusive.
        end: u64,
    }

    /// `struct xen_dm_op_set_ioreq_server_state`
    struct SetIoreqServerState {
        /// Which server.
        id: u16,
        /// 0 or 1.
        enabled: u8,
        /// Zero.
        pad: u8,
    }

    /// `struct xen_dm_op_destroy_ioreq_server`
    struct DestroyIoreqServer {
        /// Which server.
        id: u16,
        /// Zero.
        pad: u16,
    }

    /// `struct xen_dm_op_set_pci_intx_level` (x86)
    struct SetPciIntxLevel {
        /// PCI segment.
        domain: u16,
        /// PCI bus.
        bus: u8,
        /// PCI device, 0 to 31.
        device: u8,
        /// 0 to 3 for INTA to INTD.
        intx: u8,
        /// 0 or 1.
        level: u8,
    }

    /// `struct xen_dm_op_set_isa_irq_level` (x86)
    struct SetIsaIrqLevel {
        /// 0 to 15.
        isa_irq: u8,
        /// 0 or 1.
        level: u8,
    }

    /// `struct xen_dm_op_modified_memory` (x86); the extents are the second buffer.
    struct ModifiedMemory {
        /// How many extents; out: one past the one that failed.
        nr_extents: u32,
        /// Zero; Xen's.
        opaque: u32,
    }

    /// `struct xen_dm_op_modified_memory_extent`
    struct ModifiedMemoryExtent {
        /// Frames.
        nr: u32,
        /// Zero.
        pad: u32,
        /// The first frame.
        first_pfn: u64,
    }

    /// `struct xen_dm_op_set_mem_type` (x86)
    struct SetMemType {
        /// Frames.
        nr: u32,
        /// `HVMMEM_*`
        mem_type: u16,
        /// Zero.
        pad: u16,
        /// The first frame.
        first_pfn: u64,
    }

    /// `struct xen_dm_op_inject_msi` (x86)
    struct InjectMsi {
        /// The message's data.
        data: u32,
        /// Zero.
        pad: u32,
        /// The message's address.
        addr: u64,
    }

    /// `struct xen_dm_op_map_mem_type_to_ioreq_server` (x86)
    struct MapMemTypeToIoreqServer {
        /// Which server.
        id: u16,
        /// `HVMMEM_ioreq_server`
        type_: u16,
        /// Bit 0: reads, bit 1: writes; 0 takes it back.
        flags: u32,
        /// Zero; Xen's.
        opaque: u64,
    }

    /// `struct xen_dm_op_set_irq_level` (Arm)
    struct SetIrqLevel {
        /// The interrupt, shared ones from 32 on.
        irq: u32,
        /// 0 or 1.
        level: u8,
        /// Zero.
        pad: [u8; 3],
    }

    /// `struct xen_dm_op_nr_vcpus`
    struct NrVcpus {
        /// Out: the most that the guest can have.
        vcpus: u32,
    }
}

/// `XEN_DMOP_create_ioreq_server`
pub const CREATE_IOREQ_SERVER: u32 = 1;
/// `XEN_DMOP_get_ioreq_server_info`
pub const GET_IOREQ_SERVER_INFO: u32 = 2;
/// `XEN_DMOP_map_io_range_to_ioreq_server`
pub const MAP_IO_RANGE: u32 = 3;
/// `XEN_DMOP_unmap_io_range_from_ioreq_server`
pub const UNMAP_IO_RANGE: u32 = 4;
/// `XEN_DMOP_set_ioreq_server_state`
pub const SET_IOREQ_SERVER_STATE: u32 = 5;
/// `XEN_DMOP_destroy_ioreq_server`
pub const DESTROY_IOREQ_SERVER: u32 = 6;
/// `XEN_DMOP_set_pci_intx_level`
pub const SET_PCI_INTX_LEVEL: u32 = 8;
/// `XEN_DMOP_set_isa_irq_level`
pub const SET_ISA_IRQ_LEVEL: u32 = 9;
/// `XEN_DMOP_modified_memory`
pub const MODIFIED_MEMORY: u32 = 11;
/// `XEN_DMOP_set_mem_type`
pub const SET_MEM_TYPE: u32 = 12;
/// `XEN_DMOP_inject_msi`
pub const INJECT_MSI: u32 = 14;
/// `XEN_DMOP_map_mem_type_to_ioreq_server`
pub const MAP_MEM_TYPE_TO_IOREQ_SERVER: u32 = 15;
/// `XEN_DMOP_set_irq_level`
pub const SET_IRQ_LEVEL: u32 = 19;
/// `XEN_DMOP_nr_vcpus`
pub const NR_VCPUS: u32 = 20;

/// `XEN_DMOP_no_gfns`
pub const NO_GFNS: u16 = 1;
/// `XEN_DMOP_IO_RANGE_PORT`
pub const IO_RANGE_PORT: u32 = 0;
/// `XEN_DMOP_IO_RANGE_MEMORY`
pub const IO_RANGE_MEMORY: u32 = 1;
/// `XEN_DMOP_IO_RANGE_PCI`
pub const IO_RANGE_PCI: u32 = 2;
