//! virtio-blk (virtio 1.2 §5.2) over files and block devices, raw or in a format, and over the network.
//!
//! A [`Disk`] is made from a [`Config`], what the operator wrote, and a [`Storage`], such as an [`Image`], an opened
//! file. Each of its queues has a lane of its own, and each lane an [`engine::Engine`] of the storage's: for files
//! io_uring, or plain system calls where that is refused; for images in a format a pool of threads.
//! To programs that serve devices it is a [`virtio_backend::Kind`], the word for which is `disk`.
//!
//! - What the guest says ends in `request`; host I/O begins in `engine`. Neither knows the other.
//! - What the bytes of an image mean is what the configuration says: nothing ever looks at them to find out.
//! - What the host fails to do is the status of one request. The device goes on.
//! - A write is acknowledged only when it is as durable as the driver was promised (§5.2.6.2).

mod cache_mode;
mod capacity;
mod config;
mod config_space;
mod counters;
mod device;
pub mod engine;
mod format;
mod hold;
mod image;
mod kept;
mod kind;
mod limits;
pub mod nbd;
mod request;
mod resize;
mod shared;
mod storage;
mod topology;
mod turn;
mod worker;

pub use config::{Cache, Config, EngineKind, Found, OnError, Plan, PlanError};
pub use device::Disk;
pub use format::{Backing, Format, FormatError};
pub use image::{Access, Image, ImageError};
pub use kind::DiskError;
pub use storage::{Geometry, Storage};
pub use topology::Topology;
