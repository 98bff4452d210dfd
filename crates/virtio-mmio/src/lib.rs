//! The virtio-mmio transport (virtio 1.2 §4.2): a register file on the bus, and the life of the device
//! behind it.
//!
//! A [`Transport`] shows one [`virtio_backend::Backend`] to a driver. It starts the device's lanes when
//! the driver says DRIVER_OK, turns QueueNotify into kicks and the lanes' signals into interrupts, and
//! holds the answer to a reset until nothing is in flight. It knows neither what device it serves nor
//! who traps the guest's accesses; interrupts leave through an [`InterruptLine`].
//!
//! Principles: a driver can write anything at any time, and gets an answer; what it may not do is
//! ignored and counted; nothing it writes is used as an index unchecked, and rings are checked by the
//! lane that works them; a device that breaks says DEVICE_NEEDS_RESET and the vCPU goes on.

mod counters;
mod doorbell;
mod features;
mod interrupt;
mod lifecycle;
#[cfg(all(test, loom))]
mod models;
mod placeholder;
mod queue;
mod registers;
mod saved;
mod state;
mod status;
mod sync;
mod transport;
mod wreck;

pub use counters::{Counters, CountersSnapshot};
pub use interrupt::InterruptLine;
pub use placeholder::Placeholder;
pub use status::DriverState;
pub use transport::Transport;
pub use wreck::Wreck;

/// The worked example of the documentation, compiled and run as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-device.md")]
pub struct AddingADevice;
