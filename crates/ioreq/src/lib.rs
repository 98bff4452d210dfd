//! Xen's ioreq page: slots, typed requests, answers, the pump and the IOREQ server.
//!
//! Xen stops a vCPU that touches a window, writes what it wanted into the vCPU's *slot* of a shared
//! page, and signals. The [`Pump`] takes the request, has the bus's device do it, writes the answer and
//! signals back. The laws of this crate:
//!
//! - A request taken is answered exactly once on every path, a device's panic included.
//! - Slot states only move forward; nothing but a taken request is ever written to the page.
//! - What a slot says is read once, checked once (`request.rs`), and used as checked.
//! - The pump waits for its event channels and for nothing else.
//! - An IOREQ server is destroyed only when every slot is free.
//!
//! Devices are known by their bus only; guest memory through [`GuestRam`]; Xen through the
//! traits of `xen.rs`, which [`GuestDomain`] and [`GuestChannels`] implement over the kernel's devices.
#![forbid(unsafe_code)]

mod access;
mod buffered;
mod counters;
mod domain;
#[cfg(test)]
mod exhaustive;
mod interrupt;
mod page;
mod pump;
mod request;
mod server;
mod slot;
mod xen;

pub use access::{GuestRam, NoRam};
pub use counters::Counts;
pub use domain::{GuestChannels, GuestDomain};
pub use page::PageError;
pub use pump::{Pump, PumpError};
pub use request::{Access, BadRequest, Direction, MAX_COUNT, Operand, RawRequest, Request, Width};
pub use server::{CloseError, IoreqServer, MappedWindow, ServerError};
pub use xen::{Buffering, EventChannels, Hypervisor, LocalPort, RemotePort, ServerId, SharedPage, Wake, XenError};
