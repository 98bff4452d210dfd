//! Xen's ioreq page: slots, typed requests, answers, the pump and the IOREQ server.
mod page;
mod request;
mod xen;

pub use request::{Access, BadRequest, Direction, MAX_COUNT, Operand, RawRequest, Request, Width};
pub use xen::{Buffering, EventChannels, Hypervisor, LocalPort, RemotePort, ServerId, SharedPage, Wake, XenError};
