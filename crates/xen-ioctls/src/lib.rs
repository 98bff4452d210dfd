//! Xen's device nodes from user space: `/dev/xen/privcmd`, `/dev/xen/evtchn`, `/dev/xen/gntdev`.
//!
//! Two halves. [`abi`] has the kernel's and the hypervisor's structures and numbers, a file per
//! header, compared with the C headers by a test. The rest are owners: each opened node, mapping,
//! bound port and grant is a value that undoes itself when dropped, and none of them hands out a
//! pointer or a descriptor number.
//!
//! An [`Error`] tells apart what the system lacks (no Xen, no CONFIG_IOREQ_SERVER, a restricted
//! driver domain) from what was asked wrongly, and says what to do about the former.
//!
//! Nothing here keeps state beside what the kernel keeps, and every call may come from any thread.

pub mod abi;
mod domain;
mod error;
mod evtchn;
mod foreign;
mod gntdev;
mod irqfd;
mod model;
mod node;
mod privcmd;
mod resource;
mod sys;

pub use domain::{DomId, Gfn, Port, ReservedDomId};
pub use error::{Error, Kind};
pub use evtchn::{BoundPort, EventChannels, Fired};
pub use foreign::{ForeignMapping, MapError, PageError};
pub use gntdev::{CopySegment, Direction, Gntdev, GrantError, GrantMapping};
pub use irqfd::IrqFd;
pub use model::{DeviceModel, ServerId, ServerInfo, Space};
pub use privcmd::Privcmd;
pub use resource::ResourceMapping;
