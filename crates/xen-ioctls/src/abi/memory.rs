//! xen/public/memory.h: what can be mapped as a resource

/// `XENMEM_resource_ioreq_server`
pub const RESOURCE_IOREQ_SERVER: u32 = 0;
/// `XENMEM_resource_grant_table`
pub const RESOURCE_GRANT_TABLE: u32 = 1;
/// `XENMEM_resource_ioreq_server_frame_bufioreq`
pub const IOREQ_SERVER_FRAME_BUFIOREQ: u32 = 0;
/// `XENMEM_resource_ioreq_server_frame_ioreq(0)`
pub const IOREQ_SERVER_FRAME_IOREQ: u32 = 1;
